/* SPDX-License-Identifier: GPL-2.0-only */
/* The handling of a packet of a known flow from its client. */

enum { UNKNOWN_FLOW, KNOWN_FLOW };

/* Marks the packet with its flow's slot; after a reset the flow may have to be refused instead. */
static __always_inline int continue_flow(struct __sk_buff *skb, const struct settings *s, const struct packet *p,
					 u64 now)
{
	struct flow *flow = flows.lookup((void *)&p->tuple);
	u32 slot, reason, result;
	u64 identity;
	int refusal;

	if (!flow)
		return UNKNOWN_FLOW;
	identity = identity_of(&p->tuple);
	/* Read first: this packet may end the flow. */
	slot = flow->slot;
	reason = flow->reason;
	result = pass_packet(skb, flow, p, ORIGINAL, identity, now);
	if (result & GONE)
		return UNKNOWN_FLOW;
	if (result & RETURNS) {
		refusal = return_flow(flow, &p->tuple, identity, s, now);
		if (refusal) {
			refuse(skb, s, refusal);
			return KNOWN_FLOW;
		}
	}
	set_mark(skb, s, slot + 1);
	skb->tc_index = TAG_MARKED;
	count(reason, 0);
	if (result & DELETED)
		return KNOWN_FLOW;
	if (flow->replied)
		track_in_flight(skb, flow, p);
	else
		skb->tc_index = TAG_FIRST_PACKET;
	return KNOWN_FLOW;
}
