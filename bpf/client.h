/* SPDX-License-Identifier: GPL-2.0-only */
/* Counts and limits of each client, so that one client cannot fill the tables (RFC 6888, REQ-4). */

static __always_inline void client_prefix_of(struct client_key *key, const __be32 *client)
{
	bool ipv4 = is_mapped(client);

	key->client[0] = client[0];
	key->client[1] = client[1];
	key->client[2] = ipv4 ? client[2] : 0;
	key->client[3] = ipv4 ? client[3] : 0;
}

/* The reason why a client may not open a flow at present, or 0. */
static __always_inline int client_refusal(const struct client_prefix *client, const struct settings *s)
{
	if (client->flows >= s->flows_per_client)
		return REASON_CLIENT_FLOWS;
	return client->unanswered >= s->unanswered_per_client ? REASON_CLIENT_UNANSWERED : 0;
}

/* Counts a flow for its client. 0, or the reason of the refusal. While the table is full, flows of clients
 * without an entry are not counted: a full table must not cut clients off the gateway. */
static __always_inline int count_client(const struct flow_key *tuple, u32 unanswered, const struct settings *s, u64 now)
{
	struct client_key key;
	int attempt, reason = 0;

	client_prefix_of(&key, tuple->client);
	for (attempt = 0; attempt < 2; attempt++) {
		struct client_prefix *client = client_prefixes.lookup(&key);
		bool deleting;

		if (!client) {
			struct client_prefix fresh = { .used = now };

			client_prefixes.insert(&key, &fresh);
			client = client_prefixes.lookup(&key);
			if (!client)
				return 0;
		}
		bpf_spin_lock(&client->lock);
		deleting = client->deleting;
		reason = deleting ? 0 : client_refusal(client, s);
		if (reason) {
			client->refused++;
		} else if (!deleting) {
			client->flows++;
			client->total++;
			client->unanswered += unanswered;
		}
		client->used = now;
		bpf_spin_unlock(&client->lock);
		if (!deleting)
			break;
	}
	return reason;
}

/* Subtracts `flows` live flows and `unanswered` unanswered flows from a client's counts. */
static __always_inline void uncount_client(const struct flow_key *tuple, u32 flows, u32 unanswered)
{
	struct client_prefix *client;
	struct client_key key;

	client_prefix_of(&key, tuple->client);
	client = client_prefixes.lookup(&key);
	if (!client)
		return;
	bpf_spin_lock(&client->lock);
	if (client->flows >= flows)
		client->flows -= flows;
	if (client->unanswered >= unanswered)
		client->unanswered -= unanswered;
	bpf_spin_unlock(&client->lock);
}

/* Deletes a client's entry if it counts nothing. True: the entry is deleted. */
static __always_inline bool forget_client(struct client_key *key)
{
	struct client_prefix *client = client_prefixes.lookup(key);
	bool gone = false;

	if (!client)
		return false;
	bpf_spin_lock(&client->lock);
	if (!client->flows && !client->unanswered && !client->deleting) {
		client->deleting = 1;
		gone = true;
	}
	bpf_spin_unlock(&client->lock);
	if (gone)
		client_prefixes.delete(key);
	return gone;
}

static __always_inline int refusal_of_client(const struct flow_key *tuple, const struct settings *s)
{
	struct client_prefix *client;
	struct client_key key;

	client_prefix_of(&key, tuple->client);
	client = client_prefixes.lookup(&key);
	return client ? client_refusal(client, s) : 0;
}
