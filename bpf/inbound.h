/* SPDX-License-Identifier: GPL-2.0-only */
/* Packets from outside that belong to no known flow, and packets that arrive by an unfit interface. */

/*
 * Whether conntrack has translated the packet's destination: it arrived at another port than its client's, as nearly
 * all replies do. A packet that an origin addresses to a client itself has not been translated. The nftables table
 * stops such a packet too, while it knows the interface's name.
 */
static __always_inline bool is_translated(const struct __sk_buff *skb, const struct packet *p)
{
	return skb->tc_index && skb->tc_index != p->tuple.client_port;
}

/*
 * Handles an untranslated reply that arrived by an outside interface. It passes if the packets that it answers leave by
 * an interface of interfaces.other; in any other connection such a reply may come from an unrelated host.
 */
static __always_inline int pass_untranslated(struct __sk_buff *skb, const struct settings *s, const struct packet *p)
{
	u32 outside;

	set_mark(skb, s, 0);
	return route(skb, p, &outside) == REASON_OTHER ? PASS : block(REASON_INBOUND);
}

/*
 * Handles a packet to a client that belongs to no known flow. from_origin has cleared the enforcer's mark, so a mark is
 * the nftables table's: conntrack regards the packet as the opening of a connection that a helper expects (chain
 * `expected`) or, with the mark of a refusal, as an untranslated reply (chain `entering`).
 */
static __always_inline int pass_unknown(struct __sk_buff *skb, const struct packet *p)
{
	struct settings *s = get_settings();
	struct scratch *w = get_scratch(SCRATCH_PACKET);
	u32 ifindex = skb->ingress_ifindex;
	struct interface *in = interfaces.lookup(&ifindex);

	if (!s || !w || !in || in->role != OUTSIDE)
		return PASS;
	if (!our_mark(skb, s))
		return is_translated(skb, p) ? PASS : block(REASON_INBOUND);
	w->packet = *p;
	w->now = bpf_ktime_get_coarse_ns();
	stages.call(skb, EXPECT);
	return block(REASON_NOT_READY);
}

/* The nftables table knows outside interfaces by name and would accept packets that arrive by an unfit one. */
static __always_inline int block_by_unfit(struct __sk_buff *skb, const struct interface *interface,
					  const struct packet *p, int reason)
{
	if (reason == REASON_NOT_IP)
		return PASS;
	if (reason == REASON_MALFORMED || reason == REASON_TINY_FRAGMENT)
		return block(reason);
	return block_forwarded(skb, p, reason_unfit(interface));
}
