/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Admission: a live flow (struct flow.counted) is counted for its origin and for its client, each exactly once, and
 * those that have no answer (is_answered) once more for the client.
 */

/* Counts a new flow. 0, or the reason of the refusal, and then nothing is counted. */
static __always_inline int admit(const struct flow_key *tuple, const __be32 *address, u32 slot,
				 const struct settings *s, u64 now)
{
	int reason = count_client(tuple, 1, s, now);

	if (reason)
		return reason;
	reason = count_origin(tuple, address, slot, s->limit, now);
	if (reason)
		uncount_client(tuple, 1, 1);
	return reason;
}

/* Gives back what was counted for a flow. `unanswered`: 1 or 0. `never_was`: it could not be created. */
static __always_inline void release(const struct flow_key *tuple, const __be32 *address, u32 unanswered, bool never_was)
{
	uncount_client(tuple, 1, unanswered);
	uncount_origin(tuple, address, never_was);
}
