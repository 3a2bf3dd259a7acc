/* SPDX-License-Identifier: GPL-2.0-only */
/* The outcome of a packet: a program passes it on, has it refused, or drops it; each is counted by its reason. */

/* The next TC filter decides too, if there is one. */
#define PASS TC_ACT_UNSPEC

/* Marks the packet for the nftables chain `refuse`, which answers it. */
static __always_inline int refuse(struct __sk_buff *skb, const struct settings *s, u32 reason)
{
	count(reason, 1);
	set_mark(skb, s, MARK_REFUSED);
	skb->tc_index = TAG_MARKED;
	return PASS;
}

static __always_inline int block(u32 reason)
{
	count(reason, 0);
	return TC_ACT_SHOT;
}

/* Blocks what would pass the gateway. The gateway itself can be reached. */
static __always_inline int block_forwarded(struct __sk_buff *skb, const struct packet *p, u32 reason)
{
	u32 leaves_by;

	if (route(skb, p, &leaves_by) != REASON_LOCAL)
		return block(reason);
	count(REASON_LOCAL, 0);
	return PASS;
}
