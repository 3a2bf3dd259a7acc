/* SPDX-License-Identifier: GPL-2.0-only */
/* The outcomes of a packet: passed, refused or blocked, each counted by its reason. */

/* Leaves the packet to the next TC filter, if there is one. */
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

/* Blocks a packet that would be forwarded. The gateway itself remains reachable. */
static __always_inline int block_forwarded(struct __sk_buff *skb, const struct packet *p, u32 reason)
{
	u32 leaves_by;

	if (route(skb, p, &leaves_by) != REASON_LOCAL)
		return block(reason);
	count(REASON_LOCAL, 0);
	return PASS;
}
