/* SPDX-License-Identifier: GPL-2.0-only */
/* The leak guard: the checks with which to_origin decides whether a packet may leave by an outside interface. */

/* Whether the packet's source is the address that its mark names. */
static __always_inline bool has_egress_address(struct __sk_buff *skb, const struct settings *s)
{
	struct packet p = {};
	struct egress *egress;
	struct egress_address *expected;
	u32 slot, wrong = 0;
	int i;

	if (skb->protocol == be16(ETH_P_IP)) {
		struct iphdr ip;

		if (load(skb, 0, &ip, sizeof(ip)) < 0)
			return false;
		p.family = IPV4;
		map_ipv4(p.tuple.client, ip.saddr);
	} else if (skb->protocol == be16(ETH_P_IPV6)) {
		struct ipv6hdr ip;

		if (load(skb, 0, &ip, sizeof(ip)) < 0)
			return false;
		p.family = IPV6;
		copy_address(p.tuple.client, ip.saddr.in6_u.u6_addr32);
	} else {
		return false;
	}
	slot = slot_of_mark(skb, s);
	egress = egresses.lookup(&slot);
	if (!egress)
		return false;
	expected = &egress->address[p.family & 1];
#pragma unroll
	for (i = 0; i < 4; i++)
		wrong |= (p.tuple.client[i] & expected->mask[i]) ^ expected->prefix[i];
	return !wrong && expected->local;
}

/* Whether the frame comes from an upper interface, where it has been checked already: a VLAN, a PPPoE session,
 * MACsec or, by the frame's MAC address, a macvlan. */
static __always_inline bool is_upper_frame(struct __sk_buff *skb)
{
	u32 ifindex = skb->ifindex;
	struct interface *out = interfaces.lookup(&ifindex);
	struct upper_mac_key key = { .ifindex = ifindex };

	if (!out || !out->ethernet)
		return false;
	switch (skb->protocol) {
	case be16(ETH_P_8021Q):
	case be16(ETH_P_8021AD):
	case be16(ETH_P_PPP_SES):
	case be16(ETH_P_MACSEC):
		return true;
	}
	if (is_tagged(skb))
		return true;
	return bpf_skb_load_bytes(skb, ETH_ALEN /* the source is second */, key.mac, sizeof(key.mac)) == 0 &&
	       upper_macs.lookup(&key);
}

/*
 * Whether from_client has passed the packet, which then arrived by an inside interface. The stack may have assigned it
 * to another interface since: to a VRF, or to a bridge whose port that interface has become. Marks of other software
 * come without a tag.
 */
static __always_inline bool is_marked_by_us(const struct __sk_buff *skb, const struct settings *s)
{
	return skb->tc_index && our_mark(skb, s);
}
