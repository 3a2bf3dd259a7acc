"""What policies ask about that no packet carries: sessions and learnt names, kept, numbered, put in force."""
