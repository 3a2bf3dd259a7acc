/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Answers neighbour solicitations for egress ranges that are on-link (RFC 4861, 7.2.4). The kernel
 * proxies single addresses only (ndisc.c, pndisc_is_router); a range has too many addresses.
 */

enum {
	ND_SOLICIT = 135,
	ND_ADVERT = 136,
	ND_TARGET_LL_ADDR = 2,
};

struct advertisement {
	struct ipv6hdr ip;
	u8 type;
	u8 code;
	u16 checksum;
	u32 flags;
	__be32 target[4];
	u8 option;
	u8 option_length;
	u8 mac[6];
};

enum {
	MESSAGE = sizeof(struct advertisement) - sizeof(struct ipv6hdr),
};

static __always_inline bool is_on_link(const __be32 *target)
{
	struct prefix_key key = { .length = 128 };

	copy_address(key.address, target);
	return on_link.lookup(&key) != 0;
}

static __always_inline u16 fold(s64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

struct pseudo_header {
	__be32 source[4], destination[4], length, next;
};

/* Whether a solicitation's checksum is right (RFC 4861, 7.1.1). It carries up to two options of eight bytes: the
 * sender's link-layer address and a nonce (RFC 7527). */
static __always_inline bool is_intact(struct __sk_buff *skb, const struct ipv6hdr *ip)
{
	struct pseudo_header pseudo = { .length = be32(be16(ip->payload_len)), .next = be32(IPPROTO_ICMPV6) };
	u32 message[10] = {};
	int missing;

	switch (be16(ip->payload_len)) {
	case 24:
		missing = load(skb, sizeof(*ip), message, 24);
		break;
	case 32:
		missing = load(skb, sizeof(*ip), message, 32);
		break;
	case 40:
		missing = load(skb, sizeof(*ip), message, 40);
		break;
	default:
		return false;
	}
	if (missing < 0)
		return false;
	copy_address(pseudo.source, ip->saddr.in6_u.u6_addr32);
	copy_address(pseudo.destination, ip->daddr.in6_u.u6_addr32);

	s64 sum = bpf_csum_diff(0, 0, (void *)&pseudo, sizeof(pseudo), 0);

	return fold(bpf_csum_diff(0, 0, message, sizeof(message), sum)) == 0;
}

/* Addresses the frame to its sender or, if the source is unspecified (duplicate address detection), to all nodes,
 * ff02::1 (7.2.4), whose Ethernet address is built from 33:33:ff:… at which the solicitation arrived (RFC 2464, 7). */
static __always_inline void turn_back(struct ethhdr *ethernet, __be32 *destination, const struct ipv6hdr *ip,
				      bool unspecified)
{
	if (unspecified) {
		destination[0] = be32(0xff020000);
		destination[3] = be32(1);
		ethernet->h_dest[2] = 0;
		ethernet->h_dest[3] = 0;
		ethernet->h_dest[4] = 0;
		ethernet->h_dest[5] = 1;
	} else {
		copy_address(destination, ip->saddr.in6_u.u6_addr32);
		__builtin_memcpy(ethernet->h_dest, ethernet->h_source, 6);
	}
}

static __always_inline u16 checksum_of(const struct advertisement *a, const struct pseudo_header *pseudo)
{
	s64 sum = bpf_csum_diff(0, 0, (void *)pseudo, sizeof(*pseudo), 0);
	u32 message[MESSAGE / 4];

	__builtin_memcpy(message, &a->type, MESSAGE);
	return fold(bpf_csum_diff(0, 0, message, MESSAGE, sum));
}

/* True: the packet has become the advertisement, and the caller sends it back. */
static __always_inline bool answer_solicitation(struct __sk_buff *skb, const struct interface *interface)
{
	struct advertisement a;
	struct ethhdr ethernet;
	struct pseudo_header pseudo = { .length = be32(MESSAGE), .next = be32(IPPROTO_ICMPV6) };
	bool unspecified;

	if (skb->protocol != be16(ETH_P_IPV6))
		return false;
	/* A solicitation may end after its target, 8 bytes before the advertisement does. */
	if (load(skb, 0, &a, sizeof(a) - 8) < 0)
		return false;
	if (a.ip.nexthdr != IPPROTO_ICMPV6 || a.type != ND_SOLICIT || a.code || a.ip.hop_limit != 255)
		return false;
	if (!interface->ethernet || !is_on_link(a.target) || !is_intact(skb, &a.ip) ||
	    bpf_skb_load_bytes(skb, 0, &ethernet, sizeof(ethernet)) < 0)
		return false;
	copy_address(pseudo.source, a.target);
	unspecified = !(a.ip.saddr.in6_u.u6_addr32[0] | a.ip.saddr.in6_u.u6_addr32[1] | a.ip.saddr.in6_u.u6_addr32[2] |
			a.ip.saddr.in6_u.u6_addr32[3]);
	turn_back(&ethernet, pseudo.destination, &a.ip, unspecified);
	__builtin_memcpy(ethernet.h_source, interface->mac, 6);
	copy_address(a.ip.saddr.in6_u.u6_addr32, pseudo.source);
	copy_address(a.ip.daddr.in6_u.u6_addr32, pseudo.destination);
	a.ip.payload_len = be16(MESSAGE);
	a.type = ND_ADVERT;
	a.checksum = 0;
	/* Router and override; solicited unless the source is unspecified. */
	a.flags = unspecified ? be32(0xa0000000) : be32(0xe0000000);
	a.option = ND_TARGET_LL_ADDR;
	a.option_length = 1;
	__builtin_memcpy(a.mac, interface->mac, 6);
	a.checksum = checksum_of(&a, &pseudo);
	return bpf_skb_change_tail(skb, sizeof(ethernet) + sizeof(a), 0) == 0 &&
	       bpf_skb_store_bytes(skb, 0, &ethernet, sizeof(ethernet), 0) == 0 &&
	       bpf_skb_store_bytes(skb, sizeof(ethernet), &a, sizeof(a), 0) == 0;
}
