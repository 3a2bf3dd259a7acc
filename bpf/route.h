/* SPDX-License-Identifier: GPL-2.0-only */
/* The route and source checks: a packet is egress if the kernel's own routing sends it out by an outside interface. */

enum {
	LOOPBACK = 1,       /* its ifindex in every network namespace (LOOPBACK_IFINDEX) */
	SKIP_NEIGHBOUR = 4, /* BPF_FIB_LOOKUP_SKIP_NEIGH, since Linux 6.3 */
	WITH_MARK = 32,     /* BPF_FIB_LOOKUP_MARK, since Linux 6.10 */
};

/* Looks up the interface by which a packet with this mark would leave, without the next hop's link-layer address. */
static __always_inline long look_up_route(struct __sk_buff *skb, struct bpf_fib_lookup *fib, u32 mark)
{
	long result = -EINVAL;

	if (mark) {
		/* The mark of the query is in a union with the MAC addresses of the answer. */
		*(u32 *)fib->smac = mark;
		result = bpf_fib_lookup(skb, fib, sizeof(*fib), SKIP_NEIGHBOUR | WITH_MARK);
	}
	if (result == -EINVAL)
		result = bpf_fib_lookup(skb, fib, sizeof(*fib), SKIP_NEIGHBOUR);
	return result == -EINVAL ? bpf_fib_lookup(skb, fib, sizeof(*fib), 0) : result;
}

/* False for a broadcast or multicast destination: bpf_fib_lookup would return the default route. */
static __always_inline bool is_unicast(const struct packet *p)
{
	u8 first = p->family == IPV4 ? p->tuple.origin[3] & 0xff : p->tuple.origin[0] & 0xff;

	return p->family == IPV4 ? first && first < 224 : first != 0xff;
}

/*
 * Whether a whole packet was reassembled from fragments before it arrived here, as on a bridge whose packets netfilter
 * sees (bridge-nf-call-iptables): it is too large for the interface. The kernel fragments it again.
 */
static __always_inline bool is_reassembled(struct __sk_buff *skb, const struct packet *p)
{
	u32 length = p->total;

	return bpf_check_mtu(skb, 0, &length, 0, 0) == BPF_MTU_CHK_RET_FRAG_NEEDED;
}

static __always_inline int reason_unfit(const struct interface *interface)
{
	return interface->unfit == TAKEN ? REASON_TAKEN : REASON_RENAMED;
}

/* Fills a FIB query for a packet with this tuple that arrives by the interface `ifindex`. */
static __always_inline void fill_question(struct bpf_fib_lookup *fib, const struct flow_key *tuple, u32 family,
					  u32 ifindex)
{
	fib->ifindex = ifindex;
	fib->l4_protocol = tuple->protocol;
	fib->sport = tuple->client_port;
	fib->dport = tuple->origin_port;
	if (family == IPV4) {
		fib->family = 2 /* AF_INET */;
		fib->ipv4_src = tuple->client[3];
		fib->ipv4_dst = tuple->origin[3];
	} else {
		fib->family = 10 /* AF_INET6 */;
		copy_address(fib->ipv6_src, tuple->client);
		copy_address(fib->ipv6_dst, tuple->origin);
	}
}

/* Whether the FIB has returned an interface. With FRAG_NEEDED it returns none if the query has a length. */
static __always_inline bool is_routed(long result)
{
	return result == BPF_FIB_LKUP_RET_SUCCESS || result == BPF_FIB_LKUP_RET_NO_NEIGH ||
	       result == BPF_FIB_LKUP_RET_FRAG_NEEDED;
}

/*
 * 0: the packet will leave by the outside interface `*leaves_by`. Otherwise the reason why it is not egress. The FIB
 * query has the marks that other software has set so far; marks that later rules set, such as those of nftables, are
 * unknown.
 */
static __always_inline int route(struct __sk_buff *skb, const struct packet *p, u32 *leaves_by)
{
	struct bpf_fib_lookup fib = {};
	struct interface *out;
	bool too_big;
	long result;

	if (!is_unicast(p))
		return REASON_LOCAL;
	fill_question(&fib, &p->tuple, p->family, skb->ifindex);
	if (p->family == IPV4)
		fib.tos = p->tos;
	else
		fib.flowinfo = p->tos;
	/* A GSO packet is segmented later; 0 leaves the check of the MTU to the size of its segments. */
	fib.tot_len = skb->gso_segs > 1 ? 0 : p->total;
	result = look_up_route(skb, &fib, skb->mark);
	too_big = result == BPF_FIB_LKUP_RET_FRAG_NEEDED;
	if (too_big) {
		fib.ifindex = skb->ifindex;
		fib.tot_len = 0;
		result = look_up_route(skb, &fib, skb->mark);
	}
	if (result == BPF_FIB_LKUP_RET_NOT_FWDED)
		return REASON_LOCAL;
	if (!is_routed(result))
		return REASON_UNROUTED;
	*leaves_by = fib.ifindex;
	out = interfaces.lookup(leaves_by);
	if (!out)
		return REASON_UNLISTED;
	if (out->role != OUTSIDE)
		return out->role == INSIDE ? REASON_INSIDE : REASON_OTHER;
	if (out->unfit)
		return reason_unfit(out);
	/* conntrack does not see packets that the kernel will not forward, so they must not be admitted. */
	if (p->hop_limit <= 1)
		return REASON_TTL;
	if (too_big && p->dont_fragment && !p->fragment && !is_reassembled(skb, p))
		return REASON_TOO_BIG;
	return 0;
}

/*
 * Whether a reply that arrives by the outside interface `outside` would be routed to the interface by which the packet
 * arrived: the check of rp_filter = 1 (fib_validate_source, net/ipv4/fib_frontend.c), for both families. The kernel
 * queries the FIB as if the reply were its own, from lo; this query applies rules for an incoming interface (ip rule
 * iif) as the reply will meet them. The gateway's own addresses, broadcast and blackhole routes lead to no interface.
 */
static __always_inline bool leads_back(struct __sk_buff *skb, const struct packet *p, u32 outside)
{
	struct bpf_fib_lookup fib = {};
	struct flow_key answer = p->tuple;
	long result;

	invert_tuple(&answer);
	fill_question(&fib, &answer, p->family, outside);
	result = look_up_route(skb, &fib, 0);
	if (result == BPF_FIB_LKUP_RET_FWD_DISABLED) {
		/* An uplink that takes router advertisements may have IPv6 forwarding off: then the kernel's query,
		 * from lo. */
		fib.ifindex = LOOPBACK;
		result = look_up_route(skb, &fib, 0);
	}
	return is_routed(result) && fib.ifindex == skb->ifindex;
}

/* 0, or the reason why a packet that route() accepts arrived by the wrong interface. */
static __always_inline int check_source(struct __sk_buff *skb, const struct packet *p, u32 outside)
{
	u32 ifindex = skb->ifindex;
	struct interface *in = interfaces.lookup(&ifindex);

	if (in && in->unfit)
		return reason_unfit(in);
	if (in && in->any_source)
		return 0;
	return leads_back(skb, p, outside) ? 0 : REASON_SPOOFED;
}
