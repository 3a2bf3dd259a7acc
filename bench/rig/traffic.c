/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The benchmark's BPF programs: they generate packets, answer them and count them.
 *
 *   generate     XDP, run by BPF_PROG_TEST_RUN with live frames: writes the next packet of the stream
 *   sink_far     XDP on the wire behind the gateway: counts forwarded packets and drops them
 *   sink_timed   the same, and stores the delay of a stamped packet since it was written
 *   pass_far     counts as sink_far, and passes the packet on to reflect
 *   reflect      TC ingress after pass_far: sends the packet back as the origin's answer
 *   sink_near    XDP on the clients' side: counts packets that leave the gateway there and drops them
 *   redirect     TC ingress of a gateway that does nothing else: the floor
 *
 * The kernel reuses frames as the stack left them, so generate writes every header each time. Addresses are
 * in network order, four words; IPv4 uses the last one.
 */
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>

#define be16(x) __builtin_bswap16(x)
#define be32(x) __builtin_bswap32(x)
#define PINNED(type, key, value, name, entries) \
	BPF_TABLE_PINNED(type, key, value, name, entries, PIN_DIRECTORY "/" #name, 0)

enum {
	TRANSPORT_WORDS = 5,     /* words written of the transport: a TCP header, or a UDP header and 12 bytes */
	UDP_WORDS = 2,           /* a UDP header: written where there is no room for more */
	CLIENT_ISN = 0x01020304,
	ORIGIN_ISN = 0x05060708,
	SYN = 0x02,
	ACK = 0x10,
	STAMPED_PORT = 8002,     /* an origin's port: its packets carry their number and the time of writing */
	STAMPS = 65536,
};

/*
 * Flow n goes to origin n % origins, from client n / origins % clients and port
 * first_port + n / origins / clients.
 */
struct stream {
	u32 client[4];           /* the first one; the others differ in the last word, or see by_network */
	u32 origin[4];
	u32 clients;
	u32 origins;
	u64 flows;               /* number of flows; then the stream begins again */
	u64 next;                /* number of the next packet */
	u64 stride;              /* packet n belongs to flow n * stride % flows */
	u16 first_port;
	u16 origin_port;
	u8 gateway[6];           /* MAC addresses */
	u8 router[6];
	u8 ipv6;
	u8 protocol;
	u16 transport;           /* bytes after the IP header; zeros follow the written words */
	u8 flags;                /* TCP's: SYN, or ACK once the connection is there */
	u8 by_network;           /* IPv6 clients differ in the second word: their host bits are the same */
	u8 pad[2];
	u32 every;               /* every n-th packet belongs to the other stream; 0: none */
	u32 written;
	u32 pad2;
};
/* The stream, and the other stream within it. */
PINNED("array", int, struct stream, stream, 2);
/* Nanoseconds from the writing of a stamped packet to the sink, by its number. */
PINNED("array", int, u64, delays, STAMPS);

enum seen { TRANSLATED, UNTRANSLATED, ANSWERED, OTHER, KINDS };
PINNED("percpu_array", int, u64, seen, KINDS);

static __always_inline void count(int kind)
{
	u64 *packets = seen.lookup(&kind);

	if (packets)
		*packets += 1;
}

static __always_inline u16 fold(s64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Writes the checksum, too: with a wrong one conntrack calls a packet INVALID, and no reset answers it. */
static __always_inline void fill_transport(u32 *words, const struct stream *s, u16 port, u32 *pseudo, u32 size)
{
	s64 sum = bpf_csum_diff(0, 0, pseudo, size, 0);

	words[0] = be16(port) | (u32)s->origin_port << 16;
	words[1] = words[2] = words[3] = words[4] = 0;
	if (s->protocol == IPPROTO_TCP) {
		words[1] = be32(CLIENT_ISN + !(s->flags & SYN));
		words[2] = s->flags & ACK ? be32(ORIGIN_ISN + 1) : 0;
		words[3] = be32(0x5000ffff | (u32)s->flags << 16);    /* 20 bytes, window */
		words[4] = fold(bpf_csum_diff(0, 0, words, TRANSPORT_WORDS * 4, sum));
		return;
	}
	words[1] = be16(s->transport);
	if (s->origin_port == be16(STAMPED_PORT)) {
		u64 now = bpf_ktime_get_ns();

		words[2] = s->written;
		words[3] = now;
		words[4] = now >> 32;
	}
	words[1] |= (u32)fold(bpf_csum_diff(0, 0, words, TRANSPORT_WORDS * 4, sum)) << 16;
}

static __always_inline int write_transport(u32 *to, void *end, const u32 *words, u32 length)
{
	if (length < TRANSPORT_WORDS * 4) {
		if ((void *)(to + UDP_WORDS) > end)
			return XDP_ABORTED;
		__builtin_memcpy(to, words, UDP_WORDS * 4);
	} else {
		if ((void *)(to + TRANSPORT_WORDS) > end)
			return XDP_ABORTED;
		__builtin_memcpy(to, words, TRANSPORT_WORDS * 4);
	}
	return XDP_PASS;
}

int generate(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = data;
	u32 words[TRANSPORT_WORDS], client, origin;
	int zero = 0, one = 1, i;
	struct stream *s = stream.lookup(&zero);
	u64 flow, rest;
	u16 port;

	if (s && s->every && !(++s->written % s->every)) {
		s = stream.lookup(&one);
		if (s)
			s->written++;
	}
	if (!s || !s->flows || !s->clients || !s->origins)
		return XDP_ABORTED;
	flow = s->next * s->stride % s->flows;
	s->next = s->next + 1 < s->flows ? s->next + 1 : 0;
	rest = flow / s->origins;
	origin = be32(be32(s->origin[3]) + (u32)(flow % s->origins));
	client = be32(be32(s->client[3]) + (u32)(rest % s->clients));
	port = s->first_port + rest / s->clients;

	if ((void *)(ethernet + 1) > end)
		return XDP_ABORTED;
	__builtin_memcpy(ethernet->h_dest, s->gateway, 6);
	__builtin_memcpy(ethernet->h_source, s->router, 6);
	if (s->ipv6) {
		struct ipv6hdr *ip = (void *)(ethernet + 1);
		u32 pseudo[10];

		if ((void *)(ip + 1) > end)
			return XDP_ABORTED;
		for (i = 0; i < 3; i++) {
			pseudo[i] = s->client[i];
			pseudo[4 + i] = s->origin[i];
		}
		pseudo[3] = s->by_network ? s->client[3] : client;
		if (s->by_network)
			pseudo[1] = be32(be32(s->client[1]) + (u32)(rest % s->clients));
		pseudo[7] = origin;
		pseudo[8] = be32(s->transport);
		pseudo[9] = be32(s->protocol);
		ethernet->h_proto = be16(ETH_P_IPV6);
		*(u32 *)ip = be32(6 << 28);
		ip->payload_len = be16(s->transport);
		ip->nexthdr = s->protocol;
		ip->hop_limit = 64;
		__builtin_memcpy(&ip->saddr, pseudo, 32);
		fill_transport(words, s, port, pseudo, sizeof(pseudo));
		return write_transport((void *)(ip + 1), end, words, s->transport);
	} else {
		struct iphdr *ip = (void *)(ethernet + 1);
		u32 pseudo[3] = { client, origin, be32((u32)s->protocol << 16 | s->transport) };
		u32 header[5] = { be32(0x45000000 | (20 + s->transport)), be32(0x00004000),
				  be32(64 << 24 | (u32)s->protocol << 16), client, origin };

		if ((void *)(ip + 1) > end)
			return XDP_ABORTED;
		ethernet->h_proto = be16(ETH_P_IP);
		header[2] |= (u32)fold(bpf_csum_diff(0, 0, header, sizeof(header), 0)) << 16;
		__builtin_memcpy(ip, header, sizeof(header));
		fill_transport(words, s, port, pseudo, sizeof(pseudo));
		return write_transport((void *)(ip + 1), end, words, s->transport);
	}
}

/* Clients are 10.0.0.0/8 and fd00::/8; on these wires only the benchmark's packets have these protocols. */
static __always_inline int look(struct xdp_md *ctx, bool far)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = data;
	bool raw, transport, answer;

	if ((void *)(ethernet + 1) > end)
		return OTHER;
	if (ethernet->h_proto == be16(ETH_P_IP)) {
		struct iphdr *ip = (void *)(ethernet + 1);

		if ((void *)(ip + 1) > end)
			return OTHER;
		raw = (ip->saddr & 0xff) == 10;
		transport = ip->protocol == IPPROTO_TCP || ip->protocol == IPPROTO_UDP;
		answer = transport || ip->protocol == IPPROTO_ICMP;
	} else if (ethernet->h_proto == be16(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(ethernet + 1);
		u8 *kind = (void *)(ip + 1);

		if ((void *)(kind + 1) > end)
			return OTHER;
		raw = ip->saddr.in6_u.u6_addr8[0] == 0xfd;
		transport = ip->nexthdr == IPPROTO_TCP || ip->nexthdr == IPPROTO_UDP;
		answer = transport || (ip->nexthdr == IPPROTO_ICMPV6 && *kind < 128);
	} else {
		return OTHER;
	}
	if (!far)
		return answer ? ANSWERED : OTHER;
	if (!transport)
		return OTHER;
	return raw ? UNTRANSLATED : TRANSLATED;
}

int sink_far(struct xdp_md *ctx)
{
	count(look(ctx, true));
	return XDP_DROP;
}

int pass_far(struct xdp_md *ctx)
{
	count(look(ctx, true));
	return XDP_PASS;
}

static __always_inline void note_delay(const u32 *words, void *end)
{
	int number;
	u64 *delay;

	if ((void *)(words + TRANSPORT_WORDS) > end || words[0] >> 16 != be16(STAMPED_PORT))
		return;
	number = words[2] % STAMPS;
	delay = delays.lookup(&number);
	if (delay)
		*delay = bpf_ktime_get_ns() - (words[3] | (u64)words[4] << 32);
}

int sink_timed(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	int kind = look(ctx, true);

	count(kind);
	if (kind == TRANSLATED || kind == UNTRANSLATED) {
		struct ethhdr *ethernet = data;

		if ((void *)(ethernet + 1) > end)
			return XDP_DROP;
		if (ethernet->h_proto == be16(ETH_P_IP))
			note_delay(data + sizeof(*ethernet) + sizeof(struct iphdr), end);
		else
			note_delay(data + sizeof(*ethernet) + sizeof(struct ipv6hdr), end);
	}
	return XDP_DROP;
}

int sink_near(struct xdp_md *ctx)
{
	count(look(ctx, false));
	return XDP_DROP;
}

int redirect(struct __sk_buff *skb)
{
	if (skb->protocol != be16(ETH_P_IP) && skb->protocol != be16(ETH_P_IPV6))
		return TC_ACT_OK;
	return bpf_redirect(OUTSIDE_INDEX, 0);
}

/* Turns the transport header into the answer's. Swapping addresses or ports does not change a checksum. */
static __always_inline int answer(u32 *words, void *end, u32 protocol)
{
	u32 was[TRANSPORT_WORDS], is[TRANSPORT_WORDS], syn;

	if (protocol == IPPROTO_UDP) {
		if ((void *)(words + UDP_WORDS) > end)
			return TC_ACT_SHOT;
		words[0] = words[0] >> 16 | words[0] << 16;
		return TC_ACT_OK;
	}
	if (protocol != IPPROTO_TCP || (void *)(words + TRANSPORT_WORDS) > end)
		return TC_ACT_SHOT;
	__builtin_memcpy(was, words, sizeof(was));
	syn = be32(was[3]) >> 16 & SYN;
	is[0] = was[0] >> 16 | was[0] << 16;
	is[1] = syn ? be32(ORIGIN_ISN) : was[2];
	is[2] = be32(be32(was[1]) + !!syn);
	is[3] = be32(0x5000ffff | (ACK | syn) << 16);
	is[4] = 0;
	was[4] &= 0xffff;
	is[4] = fold(bpf_csum_diff(was, sizeof(was), is, sizeof(is), 0));
	__builtin_memcpy(words, is, sizeof(is));
	return TC_ACT_OK;
}

int reflect(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *ethernet = data;
	u8 mac[6];

	if ((void *)(ethernet + 1) > end)
		return TC_ACT_SHOT;
	__builtin_memcpy(mac, ethernet->h_dest, 6);
	__builtin_memcpy(ethernet->h_dest, ethernet->h_source, 6);
	__builtin_memcpy(ethernet->h_source, mac, 6);
	if (skb->protocol == be16(ETH_P_IP)) {
		struct iphdr *ip = (void *)(ethernet + 1);
		u32 address;

		if ((void *)(ip + 1) > end)
			return TC_ACT_SHOT;
		address = ip->saddr;
		ip->saddr = ip->daddr;
		ip->daddr = address;
		if (answer((void *)(ip + 1), end, ip->protocol))
			return TC_ACT_SHOT;
	} else if (skb->protocol == be16(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(ethernet + 1);
		struct in6_addr address;

		if ((void *)(ip + 1) > end)
			return TC_ACT_SHOT;
		address = ip->saddr;
		ip->saddr = ip->daddr;
		ip->daddr = address;
		if (answer((void *)(ip + 1), end, ip->nexthdr))
			return TC_ACT_SHOT;
	} else {
		return TC_ACT_SHOT;
	}
	return bpf_redirect(skb->ifindex, 0);
}
