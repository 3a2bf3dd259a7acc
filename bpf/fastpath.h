/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The fast path: rewrites packets of a flow as the kernel has routed and translated an earlier one, and redirects them
 * past routing, netfilter and the neighbour code.
 *
 * Other software in the kernel may change a packet's DSCP, hop limit, priority or mark. The fast path does not replay
 * such changes, so no entry is created from a packet that leaves with other values than the kernel alone sets (struct
 * traits).
 *
 * The fast path accepts what nf_flowtable accepts (nf_flow_table_ip.c): no fragments, no IP options, no extension
 * headers, a TTL above 1, segments no larger than those that have passed before, neither SYN, FIN nor RST. All other
 * packets take the kernel's path, and may create an entry there.
 */

enum {
	MOST_BYTES = 1 << 30,   /* after which an entry is created again, before its counter overflows */
	TTL_DECREASED = 0xfffe, /* ones' complement of 1, and of 0x100: the field less one, as part of a 16-bit word */
	HOPS_DECREASED = 0xfeff,
	IP_VERSION_AND_LENGTH = 0x45,
	NETWORK4 = sizeof(struct iphdr),
	NETWORK6 = sizeof(struct ipv6hdr),
	CHECK_TCP = 16, /* offsets of the checksum */
	CHECK_UDP = 6,
};

/* skb->priority by the four TOS bits of RFC 1349, as ip_forward sets it (route.c, ip_tos2prio). */
#define PRIORITIES 0x4444666622220000ULL

static __always_inline struct fast_path *get_fast_path(void)
{
	int zero = 0;

	return fast_path.lookup(&zero);
}

/* Null while the fast path is off. */
static __always_inline struct fast_path *get_active_fast_path(void)
{
	struct fast_path *f = get_fast_path();

	return f && f->generation ? f : 0;
}

/* Ones' complement sums (RFC 1071) of words as loaded: the byte order does not matter. */
static __always_inline u32 fold16(u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static __always_inline u64 sum_address(const __be32 *a, u32 family)
{
	return family == IPV4 ? a[3] : (u64)a[0] + a[1] + a[2] + a[3];
}

/* Values that the fast path does not change, or sets as the kernel alone would. */
struct traits {
	u32 tos; /* IPv4 TOS, or IPv6 traffic class and flow label in network order */
	u32 mark;
	u32 priority;
	u32 hop_limit;
};

/* The fields of a packet that the fast path needs, all within its first bytes. */
struct fast_packet {
	__be32 from[4];
	__be32 to[4];
	__be16 from_port;
	__be16 to_port;
	u8 protocol;
	u8 hop_limit;
	u16 check; /* the transport's checksum */
	u32 tos;   /* as struct traits has it */
	u32 total;
	u32 gso_size;
	u32 segment; /* bytes from the network header on, of one segment */
	u32 sequence;
	u32 ack;
	u32 end; /* TCP: the sequence number after the segment */
};

/* Both ports, the translated port and the slot, in one word that is read at once. */
union numbers {
	u64 word;
	struct {
		__be16 client_port;
		__be16 origin_port;
		__be16 egress_port;
		u16 slot;
	};
};

/* Cuts off the padding after a packet shorter than the 60 bytes of the smallest Ethernet frame, as the kernel does. */
static __always_inline void trim_padding(struct __sk_buff *skb, u32 family)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	u32 total, ifindex = skb->ifindex;
	struct interface *interface;

	if (skb->len != ETH_ZLEN || data + ETH_HLEN + NETWORK4 > end)
		return;
	if (family == IPV4)
		total = be16(((struct iphdr *)(data + ETH_HLEN))->tot_len);
	else
		total = NETWORK6 + be16(((struct ipv6hdr *)(data + ETH_HLEN))->payload_len);
	if (total < NETWORK4 + sizeof(struct udphdr) || total >= ETH_ZLEN - ETH_HLEN)
		return;
	/* Without an Ethernet header the bytes read above are not the packet's length. */
	interface = interfaces.lookup(&ifindex);
	if (interface && interface->ethernet)
		bpf_skb_change_tail(skb, ETH_HLEN + total, 0);
}

/* False: a fragment, a packet with IP options, or one whose hop limit ends here, which the kernel answers. */
static __always_inline bool parse_fast_ip(void *network, u32 family, struct fast_packet *g)
{
	if (family == IPV4) {
		struct iphdr *ip = network;

		if (*(u8 *)ip != IP_VERSION_AND_LENGTH || ip->frag_off & be16(IP_MORE_FRAGMENTS | IP_OFFSET) ||
		    ip->ttl <= 1)
			return false;
		g->tos = ip->tos;
		g->hop_limit = ip->ttl;
		g->total = be16(ip->tot_len);
		g->protocol = ip->protocol;
		g->from[3] = ip->saddr;
		g->to[3] = ip->daddr;
	} else {
		struct ipv6hdr *ip = network;

		if (*(u8 *)ip >> 4 != 6 || ip->hop_limit <= 1)
			return false;
		g->total = NETWORK6 + be16(ip->payload_len);
		g->protocol = ip->nexthdr;
		g->tos = *(u32 *)ip & be32(CLASS_AND_LABEL);
		g->hop_limit = ip->hop_limit;
		copy_address(g->from, ip->saddr.in6_u.u6_addr32);
		copy_address(g->to, ip->daddr.in6_u.u6_addr32);
	}
	return true;
}

/* The TCP header's length in bytes, or 0: the segment opens or ends its connection, or is incomplete. */
static __always_inline u32 parse_fast_tcp(struct tcphdr *tcp, void *end, u32 network, struct fast_packet *g)
{
	u32 header;
	u8 flags;

	if ((void *)(tcp + 1) > end)
		return 0;
	flags = *((u8 *)tcp + 13);
	header = tcp->doff * 4;
	if ((flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK)) != TCP_ACK || header < sizeof(*tcp) ||
	    network + header > g->total)
		return 0;
	g->sequence = be32(tcp->seq);
	g->ack = be32(tcp->ack_seq);
	g->end = g->sequence + g->total - network - header;
	g->check = tcp->check;
	return header;
}

/* The UDP header's length in bytes, or 0. A GSO packet gets 0: the inner headers of a tunnel's segments are unknown
 * here. */
static __always_inline u32 parse_fast_udp(struct udphdr *udp, u32 family, u32 network, struct fast_packet *g)
{
	if (network + be16(udp->len) != g->total || (family == IPV6 && !udp->check) || g->gso_size)
		return 0;
	g->sequence = 0;
	g->ack = 0;
	g->end = 0;
	g->check = udp->check;
	return sizeof(*udp);
}

/* False: the packet is not eligible for the fast path. */
static __always_inline bool parse_fast(struct __sk_buff *skb, u32 family, struct fast_packet *g)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	u32 network = family == IPV4 ? NETWORK4 : NETWORK6;
	void *transport = data + ETH_HLEN + network;
	u32 header;

	g->gso_size = skb->gso_size;
	if (transport + sizeof(struct udphdr) > end || !parse_fast_ip(data + ETH_HLEN, family, g))
		return false;
	/* The packet is neither padded nor cut short, nor too long for the length field (BIG TCP). */
	if (skb->len != ETH_HLEN + g->total)
		return false;
	g->from_port = *(u16 *)transport;
	g->to_port = *(u16 *)(transport + 2);
	if (g->protocol == IPPROTO_TCP)
		header = parse_fast_tcp(transport, end, network, g);
	else if (g->protocol == IPPROTO_UDP)
		header = parse_fast_udp(transport, family, network, g);
	else
		return false;
	if (!header)
		return false;
	g->segment = g->gso_size ? network + header + g->gso_size : g->total;
	return true;
}

/* The priority that ip_forward sets; ip6_forward sets none. */
static __always_inline u32 priority_of(u32 family, u32 tos, u32 before)
{
	return family == IPV4 ? PRIORITIES >> ((tos & 0x1e) >> 1) * 4 & 15 : before;
}

/* Whether a packet that arrived with these traits leaves with those that ip_forward or ip6_forward sets. */
static __always_inline bool is_unchanged(const struct __sk_buff *skb, u32 family, const struct fast_packet *g,
					 const struct traits *before)
{
	return g->tos == before->tos && g->hop_limit + 1 == before->hop_limit && skb->mark == before->mark &&
	       skb->priority == priority_of(family, before->tos, before->priority);
}

/* Rewrites the IP header as the kernel does: its source (to the origin) or destination becomes `address`. */
static __always_inline void rewrite_ip(struct __sk_buff *skb, void *network, u32 family, enum direction direction,
				       const struct fast_packet *g, const __be32 *address, u32 address_change)
{
	if (family == IPV4) {
		struct iphdr *ip = network;

		ip->ttl--;
		ip->check = ~fold16((u16)~ip->check + address_change + TTL_DECREASED);
		if (direction == ORIGINAL)
			ip->saddr = address[3];
		else
			ip->daddr = address[3];
		skb->priority = priority_of(IPV4, g->tos, 0);
	} else {
		struct ipv6hdr *ip = network;

		ip->hop_limit--;
		if (direction == ORIGINAL)
			copy_address(ip->saddr.in6_u.u6_addr32, address);
		else
			copy_address(ip->daddr.in6_u.u6_addr32, address);
	}
}

/*
 * Updates a TCP or UDP checksum at `check`, which is `check_at` bytes into the packet, by the changes of address and
 * port. `pseudo` is the sum of the pseudo header before the change. If the sender left the checksum to the device
 * (CHECKSUM_PARTIAL), the field contains that sum; a program cannot see CHECKSUM_PARTIAL, but any other value is a
 * checksum.
 */
static __always_inline void update_checksum(struct __sk_buff *skb, u32 family, const struct fast_packet *g, u16 *check,
					    u32 check_at, u32 address_change, u32 port_change, u64 pseudo)
{
	bool tcp = g->protocol == IPPROTO_TCP;

	if (!g->gso_size && g->check != fold16(pseudo)) {
		u32 sum = fold16((u16)~g->check + address_change + port_change);

		sum = (u16)~sum;
		*check = !tcp && !sum ? 0xffff : sum;
		/* For a device that has summed up the whole packet (CHECKSUM_COMPLETE). The IPv4 header checksum
		 * compensates for the changes of its header. */
		bpf_csum_update(skb, family == IPV4 ? (u16)~address_change : HOPS_DECREASED);
		return;
	}
	bpf_l4_csum_replace(skb, check_at, 0, address_change, BPF_F_PSEUDO_HDR | (tcp ? 0 : BPF_F_MARK_MANGLED_0));
	bpf_l4_csum_replace(skb, check_at, 0, port_change, tcp ? 0 : BPF_F_MARK_MANGLED_0);
}

/* Rewrites the packet as the kernel would: its source (to the origin) or destination becomes `address`, `port`. */
static __always_inline bool rewrite(struct __sk_buff *skb, u32 family, enum direction direction,
				    const struct fast_packet *g, const struct next_hop *next_hop, const __be32 *address,
				    __be16 port)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	u32 network = family == IPV4 ? NETWORK4 : NETWORK6;
	void *transport = data + ETH_HLEN + network;
	__be16 before_port = direction == ORIGINAL ? g->from_port : g->to_port;
	u64 before_sum = sum_address(direction == ORIGINAL ? g->from : g->to, family);
	u64 other_sum = sum_address(direction == ORIGINAL ? g->to : g->from, family);
	u32 address_change, port_change, check_at;
	u16 *check;

	/* One branch sets both: the verifier of Linux 6.1 does not relate the results of two branches. */
	if (g->protocol == IPPROTO_TCP) {
		check = transport + CHECK_TCP;
		check_at = ETH_HLEN + network + CHECK_TCP;
	} else {
		check = transport + CHECK_UDP;
		check_at = ETH_HLEN + network + CHECK_UDP;
	}
	if ((void *)(check + 1) > end || transport + sizeof(struct udphdr) > end)
		return false;
	address_change = fold16(sum_address(address, family) + (u16)~fold16(before_sum));
	port_change = port + (u16)~before_port;
	*(u32 *)data = *(u32 *)&next_hop->ethernet[0];
	*(u32 *)(data + 4) = *(u32 *)&next_hop->ethernet[4];
	*(u32 *)(data + 8) = *(u32 *)&next_hop->ethernet[8];
	*(u16 *)(transport + (direction == ORIGINAL ? 0 : 2)) = port;
	rewrite_ip(skb, data + ETH_HLEN, family, direction, g, address, address_change);
	if (g->protocol == IPPROTO_TCP || g->check /* RFC 768: 0 is none */)
		update_checksum(skb, family, g, check, check_at, address_change, port_change,
				before_sum + other_sum + be16(g->protocol) + be16(g->total - network));
	return true;
}

/* Whether the entry matches the packet. forward_by_entry compares the egress address of a reply later. */
static __always_inline bool entry_matches(const struct fast_entry *entry, u32 family, enum direction direction,
					  const struct fast_packet *g, union numbers *numbers)
{
	numbers->word = *(volatile u64 *)&entry->client_port;
	if (entry->kind != kind_of(family, g->protocol) || (entry->reason == REASON_REPLY) != (direction == REPLY))
		return false;
	if (direction == ORIGINAL)
		return numbers->client_port == g->from_port && numbers->origin_port == g->to_port &&
		       is_equal_in(family, entry->client, g->from) && is_equal_in(family, entry->origin, g->to);
	return numbers->egress_port == g->to_port && numbers->origin_port == g->from_port &&
	       is_equal_in(family, entry->origin, g->from);
}

static __always_inline void count_fast_packet(const struct __sk_buff *skb, struct fast_entry *entry,
					      const struct fast_packet *g)
{
	advance(&entry->end, g->sequence, g->end);
	entry->packets += skb->gso_segs ?: 1;
	entry->bytes += g->total;
	count(entry->reason, 0);
}

/* The packet's entry, with its ports and slot read at once; or null. */
static __always_inline struct fast_entry *find_entry(const struct fast_path *f, u32 family, enum direction direction,
						     const struct fast_packet *g, union numbers *n)
{
	struct fast_bucket *bucket;
	struct fast_entry *entry;
	int i, index;
	u32 first;

	index = direction == ORIGINAL ? bucket_of(f, family, g->from, g->to, g->from_port, g->to_port, g->protocol)
				      : bucket_of(f, family, g->to, g->from, g->to_port, g->from_port, g->protocol);
	bucket = fast_buckets.lookup(&index);
	if (!bucket)
		return 0;
	first = first_of(direction == ORIGINAL ? g->from_port : g->to_port);
	for (i = 0; i < BUCKET_ENTRIES; i++) {
		entry = &bucket->entry[(first + i) & (BUCKET_ENTRIES - 1)];
		if (entry_matches(entry, family, direction, g, n))
			return entry;
	}
	return 0;
}

static __always_inline bool is_usable(const struct fast_entry *entry, u32 until, const struct fast_path *f,
				      const struct fast_packet *g)
{
	return is_valid(until, bpf_jiffies64(), f) && entry->generation == (u16)f->generation &&
	       g->segment <= entry->largest && entry->bytes <= MOST_BYTES;
}

/* Reads the entry's client and egress address; of IPv4 addresses only the last word. False: there is no address. */
static __always_inline bool read_addresses(const struct fast_entry *entry, u32 slot, u32 family, __be32 *client,
					   __be32 *address)
{
	if (family == IPV4)
		client[3] = entry->client[3];
	else
		copy_address(client, entry->client);
	return egress_address_of(slot, family, client, address, family == IPV4 ? 3 : 0);
}

/* 0: the packet must take the kernel's path. Otherwise the value that the program returns. */
static __always_inline int forward_by_entry(struct __sk_buff *skb, u32 family, enum direction direction,
					    struct fast_packet *g)
{
	struct settings *s = get_settings();
	struct fast_path *f = get_active_fast_path();
	struct fast_entry *entry;
	struct next_hop *next_hop;
	union numbers n;
	__be32 address[4], client[4];
	u32 until;
	int index;

	if (!f || !s)
		return 0;
	trim_padding(skb, family);
	if (!parse_fast(skb, family, g))
		return 0;
	/* to_client creates a reply entry from a reply whose tag is the port at which it arrived. */
	if (direction == REPLY && g->to_port != TAG_REDIRECTED)
		skb->tc_index = g->to_port;
	entry = find_entry(f, family, direction, g, &n);
	if (!entry)
		return 0;
	until = *(volatile u32 *)&entry->until;
	if (!is_usable(entry, until, f, g))
		return 0;
	index = entry->next_hop;
	next_hop = next_hops.lookup(&index);
	if (!next_hop || next_hop->in != skb->ifindex)
		return 0;
	if (!read_addresses(entry, n.slot, family, client, address) ||
	    (direction == REPLY && !is_equal_in(family, address, g->to)))
		return 0;
	/* Another processor may have written another flow's entry here in the meantime. */
	if (*(volatile u64 *)&entry->client_port != n.word || *(volatile u32 *)&entry->until != until)
		return 0;
	if (!rewrite(skb, family, direction, g, next_hop, direction == ORIGINAL ? address : client,
		     direction == ORIGINAL ? n.egress_port : n.client_port))
		return 0;
	count_fast_packet(skb, entry, g);
	set_mark(skb, s, direction == ORIGINAL ? n.slot + 1 : 0);
	skb->tc_index = TAG_REDIRECTED;
	return bpf_redirect(next_hop->out, 0);
}

static __always_inline int try_fast_path(struct __sk_buff *skb, enum direction direction, struct fast_packet *g)
{
	if (skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return 0;
	if (skb->protocol == be16(ETH_P_IP))
		return forward_by_entry(skb, IPV4, direction, g);
	if (skb->protocol == be16(ETH_P_IPV6))
		return forward_by_entry(skb, IPV6, direction, g);
	return 0;
}
