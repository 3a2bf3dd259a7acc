/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Admission: each live flow (struct flow.counted) is counted exactly once for its origin and once for its client. A
 * flow without an answer (is_answered) also counts as unanswered for the client.
 */

/* Counts a new flow. 0, or the reason of the refusal, in which case nothing is counted. */
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

/* Reverses admit(). `unanswered`: 1 or 0. `never_was`: the flow could not be created. */
static __always_inline void release(const struct flow_key *tuple, const __be32 *address, u32 unanswered, bool never_was)
{
	uncount_client(tuple, 1, unanswered);
	uncount_origin(tuple, address, never_was);
}
