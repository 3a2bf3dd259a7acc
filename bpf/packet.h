/* SPDX-License-Identifier: GPL-2.0-only */
/* The parser: from bytes to struct packet, which serves both families. */
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <linux/if_packet.h>

/* From host to network byte order, and back. */
#define be16(x) __builtin_bswap16(x)
#define be32(x) __builtin_bswap32(x)

enum {
	PULL = 192,            /* bytes made linear when a header is not */
	EXTENSION_HEADERS = 6, /* IPv6 extension headers that the parser follows; a longer chain is malformed */
	IP_DONT_FRAGMENT = 0x4000,
	CLASS_AND_LABEL = 0x0fffffff, /* of the first word of an IPv6 header */
	IP_MORE_FRAGMENTS = 0x2000,
	IP_OFFSET = 0x1fff,
	IP6_OFFSET = 0xfff8,
	IP6_MORE = 1,
	VLAN_NUMBER = 0xfff, /* in a tag's control information (IEEE 802.1Q, 9.6) */
	ICMP_DEST_UNREACH = 3,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETERPROB = 12,
	ICMPV6_FIRST_QUERY = 128, /* below it: errors (RFC 4443, 2.1) */
	TCP_FIN = 0x01,
	TCP_SYN = 0x02,
	TCP_RST = 0x04,
	TCP_ACK = 0x10,
	TCP_URG = 0x20,
	NEXTHDR_HOP = 0,
	NEXTHDR_ROUTING = 43,
	NEXTHDR_FRAGMENT = 44,
	NEXTHDR_AUTH = 51,
	NEXTHDR_DEST = 60,
	MAPPED = 0xffff0000, /* third word of ::ffff:a.b.c.d as loaded on a little-endian machine */
};

struct packet {
	struct flow_key tuple;
	u32 family;    /* IPV4 or IPV6 */
	u32 tos;       /* IPv4 TOS, or IPv6 traffic class and flow label in network order */
	u32 total;     /* length from the network header on, by the IP header */
	u32 transport; /* offset of the transport header from the network header */
	u8 hop_limit;
	u8 dont_fragment;
	u8 fragment;       /* any fragment */
	u8 later_fragment; /* a fragment without the transport header */
	u8 icmp_type;
	u8 tcp_flags;
	u32 payload; /* bytes of TCP payload */
	u32 seq;     /* host order */
	u32 ack;
};

/* Sequence numbers compare modulo 2^32 (RFC 9293, 3.4). */
static __always_inline bool before(u32 a, u32 b)
{
	return (s32)(a - b) < 0;
}

/* Advances `end`, up to which a side has sent without a gap, by one more segment. A segment beyond a gap is ignored:
 * it may be forged, so that a reset or a FIN at its end appears to be in place. */
static __always_inline void advance(u32 *end, u32 sequence, u32 segment_end)
{
	if (!before(*end, sequence) && before(*end, segment_end))
		*end = segment_end;
}

/* `length` bytes at `offset` from the network header. 0, or negative if the packet is shorter. */
static __always_inline int load(struct __sk_buff *skb, u32 offset, void *to, u32 length)
{
	if (bpf_skb_load_bytes_relative(skb, offset, to, length, BPF_HDR_START_NET) == 0)
		return 0;
	/* The helper reads the linear part only. Pulling may copy the packet, so the program pulls only when needed. */
	bpf_skb_pull_data(skb, skb->len < PULL ? skb->len : PULL);
	return bpf_skb_load_bytes_relative(skb, offset, to, length, BPF_HDR_START_NET);
}

static __always_inline bool is_icmp(const struct packet *p)
{
	return p->tuple.protocol == (p->family == IPV4 ? IPPROTO_ICMP : IPPROTO_ICMPV6);
}

/* A GSO packet of over 65,535 bytes (BIG TCP) has length 0 in its header. */
static __always_inline u32 total_length(struct __sk_buff *skb, u32 said)
{
	return !said && skb->gso_segs ? skb->len - ETH_HLEN : said;
}

/* Whether the packet is shorter than its header says. At TC ingress wire_len counts from the network header
 * (sch_handle_ingress); elsewhere it includes the link-layer header, but there the kernel has made the packet. */
static __always_inline bool is_cut(struct __sk_buff *skb, const struct packet *p)
{
	return p->total > skb->wire_len;
}

static __always_inline void map_ipv4(__be32 *address, __be32 ipv4)
{
	address[0] = 0;
	address[1] = 0;
	address[2] = MAPPED;
	address[3] = ipv4;
}

/* Whether the address is an IPv4 address in its mapped form. An IPv6 packet must not have such an address (RFC 4291,
 * 2.5.5.2); the programs would take it for an IPv4 address. */
static __always_inline bool is_mapped(const __be32 *address)
{
	return !address[0] && !address[1] && address[2] == MAPPED;
}

static __always_inline void copy_address(__be32 *to, const __be32 *from)
{
	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
	to[3] = from[3];
}

/* Turns the addresses and ports of a reply's header into the flow's tuple, or the tuple into those of a reply. */
static __always_inline void invert_tuple(struct flow_key *tuple)
{
	struct flow_key reply = *tuple;

	copy_address(tuple->client, reply.origin);
	copy_address(tuple->origin, reply.client);
	tuple->client_port = reply.origin_port;
	tuple->origin_port = reply.client_port;
}

static __always_inline int parse_ipv4(struct __sk_buff *skb, struct packet *p)
{
	struct iphdr ip;
	u16 fragment;

	if (load(skb, 0, &ip, sizeof(ip)) < 0)
		return REASON_MALFORMED;
	p->total = total_length(skb, be16(ip.tot_len));
	p->transport = ip.ihl * 4;
	if (ip.version != 4 || ip.ihl < 5 || p->total < p->transport || is_cut(skb, p))
		return REASON_MALFORMED;
	fragment = be16(ip.frag_off);
	p->family = IPV4;
	p->tos = ip.tos;
	p->hop_limit = ip.ttl;
	p->dont_fragment = (fragment & IP_DONT_FRAGMENT) != 0;
	p->fragment = (fragment & (IP_OFFSET | IP_MORE_FRAGMENTS)) != 0;
	p->later_fragment = (fragment & IP_OFFSET) != 0;
	p->tuple.protocol = ip.protocol;
	map_ipv4(p->tuple.client, ip.saddr);
	map_ipv4(p->tuple.origin, ip.daddr);
	return 0;
}

static __always_inline bool is_extension(u8 next)
{
	return next == NEXTHDR_HOP || next == NEXTHDR_ROUTING || next == NEXTHDR_DEST || next == NEXTHDR_FRAGMENT ||
	       next == NEXTHDR_AUTH;
}

/* The length in bytes of an extension header that begins with `header`. */
static __always_inline u32 extension_length(u8 kind, const u8 *header)
{
	if (kind == NEXTHDR_FRAGMENT)
		return 8;
	return kind == NEXTHDR_AUTH ? (header[1] + 2) * 4 : (header[1] + 1) * 8;
}

static __always_inline int parse_ipv6(struct __sk_buff *skb, struct packet *p)
{
	struct ipv6hdr ip;
	u32 first_word;
	u32 offset = sizeof(ip);
	u8 next;
	int i;

	if (load(skb, 0, &ip, sizeof(ip)) < 0 || ip.version != 6)
		return REASON_MALFORMED;
	load(skb, 0, &first_word, sizeof(first_word));
	p->family = IPV6;
	p->tos = first_word & be32(CLASS_AND_LABEL);
	p->hop_limit = ip.hop_limit;
	p->dont_fragment = 1;
	copy_address(p->tuple.client, ip.saddr.in6_u.u6_addr32);
	copy_address(p->tuple.origin, ip.daddr.in6_u.u6_addr32);
	if (is_mapped(p->tuple.client) || is_mapped(p->tuple.origin))
		return REASON_MALFORMED;
	p->total = be16(ip.payload_len) ? sizeof(ip) + be16(ip.payload_len) : total_length(skb, 0) ?: sizeof(ip);
	next = ip.nexthdr;
	for (i = 0; i < EXTENSION_HEADERS && is_extension(next) && !p->later_fragment; i++) {
		u8 header[8];

		if (load(skb, offset, header, sizeof(header)) < 0)
			return REASON_MALFORMED;
		if (next == NEXTHDR_FRAGMENT) {
			u16 offset_and_more = (u16)header[2] << 8 | header[3];

			/* Offset 0 and no further fragment: an atomic fragment (RFC 6946), which is a whole packet. */
			p->fragment = (offset_and_more & (IP6_OFFSET | IP6_MORE)) != 0;
			p->later_fragment = (offset_and_more & IP6_OFFSET) != 0;
		}
		offset += extension_length(next, header);
		next = header[0];
	}
	if (is_extension(next) && !p->later_fragment)
		return REASON_MALFORMED;
	p->tuple.protocol = next;
	p->transport = offset;
	return offset > p->total || is_cut(skb, p) ? REASON_MALFORMED : 0;
}

static __always_inline int parse_transport(struct __sk_buff *skb, struct packet *p)
{
	u32 left = p->total - p->transport;
	int too_short = p->fragment ? REASON_TINY_FRAGMENT : REASON_MALFORMED;

	if (p->tuple.protocol == IPPROTO_TCP) {
		struct tcphdr tcp;
		u8 flags;

		if (load(skb, p->transport, &tcp, sizeof(tcp)) < 0 || left < sizeof(tcp))
			return too_short;
		load(skb, p->transport + 13, &flags, 1);
		if (tcp.doff < 5 || tcp.doff * 4 > left)
			return too_short;
		p->tuple.client_port = tcp.source;
		p->tuple.origin_port = tcp.dest;
		p->tcp_flags = flags;
		p->payload = left - tcp.doff * 4;
		p->seq = be32(tcp.seq);
		p->ack = be32(tcp.ack_seq);
	} else if (p->tuple.protocol == IPPROTO_UDP) {
		struct udphdr udp;

		if (load(skb, p->transport, &udp, sizeof(udp)) < 0 || left < sizeof(udp))
			return too_short;
		p->tuple.client_port = udp.source;
		p->tuple.origin_port = udp.dest;
	} else if (is_icmp(p)) {
		if (load(skb, p->transport, &p->icmp_type, 1) < 0 || left < 8)
			return too_short;
	}
	return 0;
}

static __always_inline bool is_ip(const struct __sk_buff *skb)
{
	return skb->protocol == be16(ETH_P_IP) || skb->protocol == be16(ETH_P_IPV6);
}

/* Whether the frame belongs to a VLAN, whose interface has programs of its own. Number 0 is a priority, not a VLAN. */
static __always_inline bool is_tagged(const struct __sk_buff *skb)
{
	return skb->vlan_present && skb->vlan_tci & VLAN_NUMBER;
}

/* 0, and the packet in `p`; or the reason why the packet cannot be parsed. */
static __always_inline int parse(struct __sk_buff *skb, struct packet *p)
{
	int reason;

	if (!is_ip(skb) || is_tagged(skb) || skb->pkt_type == PACKET_OTHERHOST)
		return REASON_NOT_IP;
	reason = skb->protocol == be16(ETH_P_IP) ? parse_ipv4(skb, p) : parse_ipv6(skb, p);
	if (reason)
		return reason;
	if (p->later_fragment)
		return REASON_LATER_FRAGMENT;
	return parse_transport(skb, p);
}
