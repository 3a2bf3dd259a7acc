/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Creation and removal of fast-path entries. to_origin creates the entry of the original direction: a tag that the
 * packet carries through the kernel (in_flight) leads to the packet's values on arrival. to_client creates the entry of
 * the reply direction: the address and port at which the reply arrived follow from the other entry.
 */

enum {
	TAGS = 128,             /* packets in the kernel at once, on one processor */
	IN_FLIGHT_JIFFIES = 25, /* longest time that a packet may take through the kernel */
	NEXT_HOP_TRIES = 8,
	NEXT_HOP_OUTLIVES = 1, /* lifetimes for which a next hop is valid beyond its entries */
	MACS = 12,
	EMPTY_ONES = 3, /* from this packet of a TCP flow on, a packet without data may create an entry */
};

/* ns for which a held FIN keeps its flow off the fast path, so that track() sees the answer. Signed, as the value
 * that it is compared with; an enumerator of this size would make its whole enum unsigned. */
#define FIN_PATIENCE 5000000000LL

/* A packet of a flow that is in the kernel, by its tag. Tags are assigned in sequence across all processors, so a
 * packet that leaves on another processor than it arrived on finds no record. */
struct in_flight {
	u32 tag;
	u32 since; /* jiffies */
	u32 generation;
	struct flow_key flow;
	u32 sequence;
	u32 ack;
	u32 total;
	u32 in;
	struct traits traits;
};
BPF_PERCPU_ARRAY(in_flight, struct in_flight, TAGS);
BPF_ARRAY(next_tag, u64, 1);

/* Whether packets of the flow may take the fast path from now on. */
static __always_inline bool is_offloadable(const struct flow *flow, const struct flow_key *tuple)
{
	/* Clocks of two processors may differ by a tick. */
	if (flow->fins && (s64)(flow->last_seen - flow->fin_seen) < FIN_PATIENCE)
		return false;
	return flow->replied && !flow->closing && flow->reason != REASON_DNS &&
	       (tuple->protocol == IPPROTO_UDP || flow->state == ESTABLISHED);
}

/* An entry that is created from an acknowledgement without data matches no packet with data. A short connection ends
 * before such an entry pays off; a side that only acknowledges gets its entry from a later packet. */
static __always_inline bool is_worth_offloading(const struct flow *flow, const struct packet *p,
						enum direction direction)
{
	return p->tuple.protocol == IPPROTO_UDP || p->payload || flow->packets[direction] >= EMPTY_ONES;
}

/* Tags the packet, so that to_origin can create an entry from the packet as the kernel has routed and translated it. */
static __always_inline void track_in_flight(struct __sk_buff *skb, const struct flow *flow, const struct packet *p)
{
	struct fast_path *f = get_active_fast_path();
	struct in_flight *one;
	u64 *last;
	u32 tag;
	int index = 0;

	if (!f || p->fragment || !is_offloadable(flow, &p->tuple) || !is_worth_offloading(flow, p, ORIGINAL))
		return;
	last = next_tag.lookup(&index);
	if (!last)
		return;
	tag = 1 + __sync_fetch_and_add(last, 1) % (TAG_MARKED - 1);
	index = tag % TAGS;
	one = in_flight.lookup(&index);
	if (!one)
		return;
	one->tag = tag;
	one->since = bpf_jiffies64();
	one->generation = f->generation;
	one->flow = p->tuple;
	one->sequence = p->seq;
	one->ack = p->ack;
	one->total = p->total;
	one->in = skb->ifindex;
	one->traits.tos = p->tos;
	one->traits.hop_limit = p->hop_limit;
	one->traits.mark = skb->mark;
	one->traits.priority = skb->priority;
	skb->tc_index = tag;
}

/* A reply that is in the kernel, by the port at which it arrived; a later one with the same index replaces it. */
struct arrival {
	u32 port;
	struct traits traits;
};
BPF_PERCPU_ARRAY(arrivals, struct arrival, TAGS);

/* Called by from_origin: records a reply that takes the kernel's path. */
static __always_inline void note_arrival(struct __sk_buff *skb, const struct fast_packet *g)
{
	int index = skb->tc_index % TAGS;
	struct arrival *one = arrivals.lookup(&index);

	if (!one)
		return;
	one->port = skb->tc_index;
	one->traits.tos = g->tos;
	one->traits.hop_limit = g->hop_limit;
	one->traits.mark = skb->mark;
	one->traits.priority = skb->priority;
}

/* Called by to_client: whether no other software has changed the reply since it arrived. */
static __always_inline bool is_as_it_arrived(struct __sk_buff *skb, u32 family, const struct fast_packet *g, u32 port)
{
	int index = port % TAGS;
	struct arrival *one = arrivals.lookup(&index);

	return one && one->port == port && is_unchanged(skb, family, g, &one->traits);
}

/* Makes earlier stores visible to other processors before any later load (a locked instruction). */
static __always_inline void full_barrier(struct flow *flow)
{
	__sync_fetch_and_add(&flow->fast_packets[ORIGINAL], 0);
}

/* Removes an entry and adds its counts and sequence number to its flow. False: there was no entry. */
static __always_inline bool remove_entry(const struct fast_path *f, struct flow *flow, const struct flow_key *tuple,
					 u32 bucket, enum direction direction, struct entry_state *last)
{
	if (!delete_entry(bucket, tuple, direction, last))
		return false;
	add_counts(flow, last, direction);
	/* The end of a side's data distinguishes a genuine reset from a forged one. */
	bpf_spin_lock(&flow->lock);
	if (before(flow->end[direction], last->end))
		flow->end[direction] = last->end;
	bpf_spin_unlock(&flow->lock);
	return true;
}

/* Removes both entries: the flow's packets take the kernel's path again. */
static __always_inline void remove_entries(struct flow *flow, const struct flow_key *tuple)
{
	struct fast_path *f = get_fast_path();
	struct entry_state last;
	__be16 port;

	full_barrier(flow);
	port = flow->egress_port;
	if (!f || !port)
		return;
	flow->egress_port = 0;
	full_barrier(flow);
	remove_entry(f, flow, tuple, bucket_of_flow(f, tuple, flow->egress_address, port, ORIGINAL), ORIGINAL, &last);
	remove_entry(f, flow, tuple, bucket_of_flow(f, tuple, flow->egress_address, port, REPLY), REPLY, &last);
}

/* A flow's packet as it leaves, after translation. */
struct egress_packet {
	u32 family;
	u32 slot;
	__be32 address[4];
	__be32 origin[4];
	__be16 port;
	__be16 origin_port;
	u8 protocol;
};

static __always_inline bool is_offload_interface(u32 ifindex, enum role role)
{
	struct interface *interface = interfaces.lookup(&ifindex);

	return interface && interface->role == role && interface->ethernet && !interface->filtered && !interface->unfit;
}

static __always_inline bool is_same_next_hop(const struct next_hop *a, const struct next_hop *b)
{
	return a->in == b->in && a->out == b->out && *(u32 *)&a->ethernet[0] == *(u32 *)&b->ethernet[0] &&
	       *(u32 *)&a->ethernet[4] == *(u32 *)&b->ethernet[4] && *(u32 *)&a->ethernet[8] == *(u32 *)&b->ethernet[8];
}

/* The index of a next hop, which remains valid for longer than an entry created now; negative: there is no room. */
static __always_inline int put_next_hop(const struct fast_path *f, const struct next_hop *next_hop, u32 now)
{
	u64 hash = mix(mix(mix(f->seed, (u64)next_hop->in << 32 | next_hop->out), *(u64 *)&next_hop->ethernet[0]),
		       *(u32 *)&next_hop->ethernet[8]);
	u32 until = now + f->lifetime * (1 + NEXT_HOP_OUTLIVES) ?: 1;
	int i;

	for (i = 0; i < NEXT_HOP_TRIES; i++) {
		int index = (hash + i) % NEXT_HOPS;
		struct next_hop *there = next_hops.lookup(&index);
		struct bucket_lock *bucket_lock = bucket_lock_of(index);
		bool mine = false;

		if (!there || !bucket_lock)
			return -1;
		bpf_spin_lock(&bucket_lock->lock);
		if (is_same_next_hop(there, next_hop)) {
			mine = true;
		} else if (!there->until || (s32)(there->until - now) <= 0) {
			there->in = next_hop->in;
			there->out = next_hop->out;
			*(u64 *)&there->ethernet[0] = *(u64 *)&next_hop->ethernet[0];
			*(u32 *)&there->ethernet[8] = *(u32 *)&next_hop->ethernet[8];
			mine = true;
		}
		if (mine)
			there->until = until;
		bpf_spin_unlock(&bucket_lock->lock);
		if (mine)
			return index;
	}
	return -1;
}

/* Whether the flow may still have entries with this port. Ending a flow sets `closing`, and removing entries clears
 * `egress_port`, before an entry is deleted; creation re-checks both after inserting one. So no entry outlives its
 * flow. */
static __always_inline bool is_still_offloadable(const struct flow_key *tuple, __be16 port)
{
	struct flow *flow = flows.lookup((void *)tuple);

	return flow && is_offloadable(flow, tuple) && flow->egress_port == port;
}

/* Creates an entry from a translated packet of the flow that is leaving in this direction. */
static __always_inline void create_entry(struct __sk_buff *skb, const struct fast_path *f, const struct fast_packet *g,
					 struct flow *flow, const struct flow_key *tuple, __be16 port, u32 in,
					 u32 generation, enum direction direction)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	u32 now = bpf_jiffies64();
	u32 bucket = bucket_of_flow(f, tuple, flow->egress_address, port, direction);
	struct next_hop next_hop = { .in = in, .out = skb->ifindex };
	struct entry_state last = {};
	struct fast_entry entry = {};
	int number;

	if (data + MACS > end)
		return;
	*(u64 *)&next_hop.ethernet[0] = *(u64 *)data;
	*(u32 *)&next_hop.ethernet[8] = *(u32 *)(data + 8);
	number = put_next_hop(f, &next_hop, now);
	if (number < 0)
		return;
	copy_address(entry.client, tuple->client);
	copy_address(entry.origin, tuple->origin);
	entry.client_port = tuple->client_port;
	entry.origin_port = tuple->origin_port;
	entry.egress_port = port;
	entry.slot = flow->slot;
	entry.until = now + f->lifetime ?: 1;
	entry.generation = generation;
	entry.next_hop = number;
	entry.largest = g->segment > 0xffff ? 0 : g->segment;
	entry.kind = kind_of(family_of(tuple->client), tuple->protocol);
	entry.reason = direction == REPLY ? REASON_REPLY : flow->reason;
	if (remove_entry(f, flow, tuple, bucket, direction, &last) && last.generation == entry.generation &&
	    last.next_hop == entry.next_hop && last.largest > entry.largest)
		entry.largest = last.largest;
	entry.end = flow->end[direction];
	advance(&entry.end, g->sequence, g->end);
	insert_entry(f, bucket, tuple, &entry, direction, now);
	full_barrier(flow);
	if (!is_still_offloadable(tuple, port))
		delete_entry(bucket, tuple, direction, &last);
}

/* conntrack has assigned the port to a flow, so the flow that held it before loses its entries. `but`: the flow that
 * keeps its entries, or null. */
static __always_inline void invalidate_port_owner(const struct fast_path *f, const struct egress_packet *d,
						  const struct flow_key *but)
{
	int i, index = bucket_of(f, d->family, d->address, d->origin, d->port, d->origin_port, d->protocol);
	struct bucket_lock *bucket_lock = bucket_lock_of(index);
	struct fast_bucket *bucket;
	struct flow_key other;
	struct flow *owner;
	bool found = false;

	if (!bucket_lock || !bucket_lock->reply_entries)
		return;
	bucket = fast_buckets.lookup(&index);
	if (!bucket)
		return;
	for (i = 0; i < BUCKET_ENTRIES; i++) {
		struct fast_entry *entry = &bucket->entry[i];

		if (entry->until && entry->reason == REASON_REPLY && entry->egress_port == d->port &&
		    entry->slot == (u16)d->slot && entry->origin_port == d->origin_port &&
		    is_equal(entry->origin, d->origin) && entry->kind == kind_of(d->family, d->protocol) &&
		    (!but || entry->client_port != but->client_port || !is_equal(entry->client, but->client))) {
			tuple_of(&other, entry);
			found = true;
			break;
		}
	}
	if (!found)
		return;
	owner = flows.lookup(&other);
	if (owner)
		remove_entries(owner, &other);
}

static __always_inline bool parse_fast_any(struct __sk_buff *skb, u32 family, struct fast_packet *g)
{
	return family == IPV4 ? parse_fast(skb, IPV4, g) : parse_fast(skb, IPV6, g);
}

/* Called by to_origin with a tagged packet: creates the entry of the original direction. */
static __always_inline void create_original_entry(struct __sk_buff *skb, u32 family)
{
	u32 tag = skb->tc_index;
	int index = tag % TAGS;
	struct in_flight *from = in_flight.lookup(&index);
	struct fast_path *f = get_active_fast_path();
	struct fast_packet g = {};
	const struct flow_key *tuple;
	struct flow *flow;

	if (!from || from->tag != tag || !f)
		return;
	from->tag = 0;
	tuple = &from->flow;
	if ((u32)bpf_jiffies64() - from->since > IN_FLIGHT_JIFFIES || family_of(tuple->client) != family ||
	    !is_offload_interface(skb->ifindex, OUTSIDE) || !is_offload_interface(from->in, INSIDE) ||
	    !parse_fast_any(skb, family, &g))
		return;
	flow = flows.lookup((void *)tuple);
	/* If a conntrack helper has changed the contents, that helper must see every packet: no entry. */
	if (!flow || !is_equal_in(family, g.to, tuple->origin) || !is_equal_in(family, g.from, flow->egress_address) ||
	    g.to_port != tuple->origin_port || g.protocol != tuple->protocol || g.sequence != from->sequence ||
	    g.ack != from->ack || g.total != from->total || !is_unchanged(skb, family, &g, &from->traits))
		return;
	if (flow->egress_port != g.from_port) {
		struct egress_packet d = {
			.family = family,
			.slot = flow->slot,
			.port = g.from_port,
			.origin_port = tuple->origin_port,
			.protocol = tuple->protocol,
		};

		copy_address(d.address, flow->egress_address);
		copy_address(d.origin, tuple->origin);
		invalidate_port_owner(f, &d, tuple);
		remove_entries(flow, tuple);
		flow->egress_port = g.from_port;
	}
	create_entry(skb, f, &g, flow, tuple, g.from_port, from->in, from->generation, ORIGINAL);
}

/* False: the offset of the ports is unknown. An interface without Ethernet has no entries, and none is found. */
static __always_inline bool parse_egress(struct __sk_buff *skb, u32 family, struct egress_packet *d)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	void *transport = data + ETH_HLEN + (family == IPV4 ? NETWORK4 : NETWORK6);

	if (transport + sizeof(struct udphdr) > end)
		return false;
	if (family == IPV4) {
		struct iphdr *ip = data + ETH_HLEN;

		if (*(u8 *)ip != IP_VERSION_AND_LENGTH || ip->frag_off & be16(IP_MORE_FRAGMENTS | IP_OFFSET))
			return false;
		d->protocol = ip->protocol;
		map_ipv4(d->address, ip->saddr);
		map_ipv4(d->origin, ip->daddr);
	} else {
		struct ipv6hdr *ip = data + ETH_HLEN;

		d->protocol = ip->nexthdr;
		copy_address(d->address, ip->saddr.in6_u.u6_addr32);
		copy_address(d->origin, ip->daddr.in6_u.u6_addr32);
	}
	d->family = family;
	d->port = *(u16 *)transport;
	d->origin_port = *(u16 *)(transport + 2);
	return d->protocol == IPPROTO_TCP || d->protocol == IPPROTO_UDP;
}

/* Called by to_origin with a packet of an unanswered flow. Replies to its port are for this flow alone; the port may
 * have been another flow's until now, if conntrack's entry of that flow was deleted by command or for lack of room. */
static __always_inline void claim_port(struct __sk_buff *skb, u32 family, u32 slot)
{
	struct egress_packet d = { .slot = slot };
	struct fast_path *f = get_active_fast_path();

	if (f && (family == IPV4 ? parse_egress(skb, IPV4, &d) : parse_egress(skb, IPV6, &d)))
		invalidate_port_owner(f, &d, 0);
}

/* Called by to_client with a reply of this flow: creates the entry of the reply direction. */
static __always_inline void create_reply_entry(struct __sk_buff *skb, const struct packet *p, struct flow *flow)
{
	const struct flow_key *tuple = &p->tuple;
	struct fast_path *f = get_active_fast_path();
	__be16 port = flow->egress_port;
	struct fast_packet g = {};

	if (f && port && skb->tc_index == port && is_offloadable(flow, tuple) && is_worth_offloading(flow, p, REPLY) &&
	    is_offload_interface(skb->ingress_ifindex, OUTSIDE) && is_offload_interface(skb->ifindex, INSIDE) &&
	    parse_fast_any(skb, p->family, &g) && is_as_it_arrived(skb, p->family, &g, port))
		create_entry(skb, f, &g, flow, tuple, port, skb->ingress_ifindex, f->generation, REPLY);
}
