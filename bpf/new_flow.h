/* SPDX-License-Identifier: GPL-2.0-only */
/* Admission of a new flow: counts and creates it, and makes room if a table is full. */

enum { CREATED, CREATED_BEFORE = -1 };

/* CREATED, CREATED_BEFORE (by another processor in the meantime), or the reason why the flow is not created. */
static __always_inline int admit_flow(struct __sk_buff *skb, const struct settings *s, const struct packet *p,
				      struct verdict *v, enum direction direction, u64 now)
{
	int attempt, reason = REASON_FLOWS_FULL;
	struct flow *flow;

#pragma nounroll
	for (attempt = 0; attempt < 2; attempt++) {
		long failed;

		if (attempt && !make_room(reason))
			return reason;
		reason = admit(&p->tuple, v->egress_address, v->slot, s, now);
		if (reason == REASON_ORIGINS_FULL)
			continue;
		if (reason)
			return reason;
		failed = create_flow(skb, p, v, direction, now);
		if (!failed)
			return CREATED;
		release(&p->tuple, v->egress_address, 1, true);
		if (failed != -E2BIG)
			break;
		reason = REASON_FLOWS_FULL;
	}
	if (reason)
		return reason;
	/* Another processor has created the flow since the lookup: its verdict applies. */
	flow = flows.lookup((void *)&p->tuple);
	if (!flow || flow->deleting)
		return REASON_ENDING;
	v->reason = flow->reason;
	v->slot = flow->slot;
	return CREATED_BEFORE;
}
