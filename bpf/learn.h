/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Learning what the fast path replays. The way out is learnt where a flow's packet leaves: what arrived is known
 * by a tag that it carries through the kernel. The way back is learnt where an answer leaves for its client: how
 * it had arrived follows from the way out.
 */

enum {
	TAGS = 128,              /* packets on their way through the kernel at once, on one processor */
	PASSING = 25,            /* jiffies that a packet's way may take */
	HOP_TRIES = 8,
	HOP_OUTLIVES = 1,        /* lifetimes that a hop is good for beyond its ways */
	MACS = 12,
	EMPTY_ONES = 3,          /* this packet of a TCP flow and later ones may be learnt from without data */
};

/* ns that a held FIN keeps its flow off the fast path, so that the answer is seen. Signed, as what it is compared with; an
 * enumerator of this size would make all of its enum unsigned. */
#define FIN_PATIENCE 5000000000LL

/* A packet of a flow on its way through the kernel, by its tag. Tags are given in sequence on all processors, so that
 * one which leaves on another than it came on finds nothing. */
struct passing {
	u32 tag;
	u32 since;               /* jiffies */
	u32 generation;
	struct flow_key flow;
	u32 sequence;
	u32 ack;
	u32 total;
	u32 in;
	struct traits traits;
};
BPF_PERCPU_ARRAY(passing, struct passing, TAGS);
BPF_ARRAY(last_tag, u64, 1);

/* Whether a flow's packets may take the fast path from now on. */
static __always_inline bool is_learnable(const struct flow *flow, const struct flow_key *tuple)
{
	/* Clocks of two processors may differ by a tick. */
	if (flow->fins && (s64)(flow->seen - flow->fin_seen) < FIN_PATIENCE)
		return false;
	return flow->replied && !flow->closing && flow->reason != REASON_DNS &&
	       (tuple->protocol == IPPROTO_UDP || flow->state == ESTABLISHED);
}

/* What is learnt from an acknowledgement without data fits no packet with some. Short connections end before it would
 * pay; who only acknowledges is learnt from a little later. */
static __always_inline bool is_worth_learning(const struct flow *flow, const struct packet *p, enum direction direction)
{
	return p->tuple.protocol == IPPROTO_UDP || p->payload || flow->packets[direction] >= EMPTY_ONES;
}

/* Has what becomes of this packet noted. */
static __always_inline void offer(struct __sk_buff *skb, const struct flow *flow, const struct packet *p)
{
	struct fast *f = get_fast();
	struct passing *one;
	u64 *last;
	u32 tag;
	int index = 0;

	if (!f || p->fragment || !is_learnable(flow, &p->tuple) || !is_worth_learning(flow, p, ORIGINAL))
		return;
	last = last_tag.lookup(&index);
	if (!last)
		return;
	tag = 1 + __sync_fetch_and_add(last, 1) % (TAG_MARKED - 1);
	index = tag % TAGS;
	one = passing.lookup(&index);
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

/* An answer on its way, by the port that it came to; a later one of the same may take its place. */
struct arrival {
	u32 port;
	struct traits traits;
};
BPF_PERCPU_ARRAY(arrivals, struct arrival, TAGS);

/* In from_origin: an answer goes the kernel's way. */
static __always_inline void note_arrival(struct __sk_buff *skb, const struct glance *g)
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

/* In to_client: whether no other software has changed the answer since it arrived. */
static __always_inline bool is_as_it_arrived(struct __sk_buff *skb, u32 family, const struct glance *g, u32 port)
{
	int index = port % TAGS;
	struct arrival *one = arrivals.lookup(&index);

	return one && one->port == port && is_untouched(skb, family, g, &one->traits);
}

/* What was stored before is seen by others before anything is read after (a locked instruction). */
static __always_inline void full_barrier(struct flow *flow)
{
	__sync_fetch_and_add(&flow->fast_packets[ORIGINAL], 0);
}

/* Takes a way back: its flow gets what it knew. False: there was none. */
static __always_inline bool unlearn_way(const struct fast *f, struct flow *flow, const struct flow_key *tuple, u32 set,
					enum direction direction, struct last_seen *last)
{
	if (!take_way(set, tuple, direction, last))
		return false;
	add_up(flow, last, direction);
	/* How far a side has come tells a true reset from a forged one. */
	bpf_spin_lock(&flow->lock);
	if (before(flow->end[direction], last->end))
		flow->end[direction] = last->end;
	bpf_spin_unlock(&flow->lock);
	return true;
}

/* The flow's packets go the kernel's way again. */
static __always_inline void unlearn(struct flow *flow, const struct flow_key *tuple)
{
	struct fast *f = get_switch();
	struct last_seen last;
	u16 port;

	full_barrier(flow);
	port = flow->source_port;
	if (!f || !port)
		return;
	flow->source_port = 0;
	full_barrier(flow);
	unlearn_way(f, flow, tuple, set_of_flow(f, tuple, flow->source, port, ORIGINAL), ORIGINAL, &last);
	unlearn_way(f, flow, tuple, set_of_flow(f, tuple, flow->source, port, REPLY), REPLY, &last);
}

/* A flow's packet as it leaves: translated. */
struct departure {
	u32 family;
	u32 slot;
	u32 source[4];
	u32 origin[4];
	u16 port;
	u16 origin_port;
	u8 protocol;
};

static __always_inline bool is_learnable_at(u32 ifindex, enum role role)
{
	struct interface *interface = interfaces.lookup(&ifindex);

	return interface && interface->role == role && interface->ethernet && !interface->filtered && !interface->unfit;
}

static __always_inline bool is_same_hop(const struct hop *a, const struct hop *b)
{
	return a->in == b->in && a->out == b->out && *(u32 *)&a->ethernet[0] == *(u32 *)&b->ethernet[0] &&
	       *(u32 *)&a->ethernet[4] == *(u32 *)&b->ethernet[4] && *(u32 *)&a->ethernet[8] == *(u32 *)&b->ethernet[8];
}

/* The number of a hop, which is good for long enough from now on; negative: there is no room. */
static __always_inline int put_hop(const struct fast *f, const struct hop *hop, u32 now)
{
	u64 hash = mix(mix(mix(f->seed, (u64)hop->in << 32 | hop->out), *(u64 *)&hop->ethernet[0]),
		       *(u32 *)&hop->ethernet[8]);
	u32 until = now + f->lifetime * (1 + HOP_OUTLIVES) ?: 1;
	int i;

	for (i = 0; i < HOP_TRIES; i++) {
		int index = (hash + i) % HOPS;
		struct hop *there = hops.lookup(&index);
		struct guard *guard = guard_of(index);
		bool mine = false;

		if (!there || !guard)
			return -1;
		bpf_spin_lock(&guard->lock);
		if (is_same_hop(there, hop)) {
			mine = true;
		} else if (!there->until || (s32)(there->until - now) <= 0) {
			there->in = hop->in;
			there->out = hop->out;
			*(u64 *)&there->ethernet[0] = *(u64 *)&hop->ethernet[0];
			*(u32 *)&there->ethernet[8] = *(u32 *)&hop->ethernet[8];
			mine = true;
		}
		if (mine)
			there->until = until;
		bpf_spin_unlock(&guard->lock);
		if (mine)
			return index;
	}
	return -1;
}

/* True: the flow may still be learnt, with this port. Whoever ends it (`closing`), or another port, says so before
 * he looks for its ways: one of both sees the other. */
static __always_inline bool is_still_learnable(const struct flow_key *tuple, u16 port)
{
	struct flow *flow = flows.lookup((void *)tuple);

	return flow && is_learnable(flow, tuple) && flow->source_port == port;
}

/* A packet of the flow is leaving, as it has become: enters its way. */
static __always_inline void learn(struct __sk_buff *skb, const struct fast *f, const struct glance *g, struct flow *flow,
				  const struct flow_key *tuple, u16 port, u32 in, u32 generation,
				  enum direction direction)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	u32 now = bpf_jiffies64();
	u32 set = set_of_flow(f, tuple, flow->source, port, direction);
	struct hop hop = { .in = in, .out = skb->ifindex };
	struct last_seen last = {};
	struct way way = {};
	int number;

	if (data + MACS > end)
		return;
	*(u64 *)&hop.ethernet[0] = *(u64 *)data;
	*(u32 *)&hop.ethernet[8] = *(u32 *)(data + 8);
	number = put_hop(f, &hop, now);
	if (number < 0)
		return;
	copy_address(way.client, tuple->client);
	copy_address(way.origin, tuple->origin);
	way.client_port = tuple->client_port;
	way.origin_port = tuple->origin_port;
	way.source_port = port;
	way.slot = flow->slot;
	way.until = now + f->lifetime ?: 1;
	way.generation = generation;
	way.hop = number;
	way.largest = g->segment > 0xffff ? 0 : g->segment;
	way.kind = kind_of(family_of(tuple->client), tuple->protocol);
	way.reason = direction == REPLY ? REASON_REPLY : flow->reason;
	if (unlearn_way(f, flow, tuple, set, direction, &last) && last.generation == way.generation &&
	    last.hop == way.hop && last.largest > way.largest)
		way.largest = last.largest;
	way.end = flow->end[direction];
	advance(&way.end, g->sequence, g->end);
	put_way(f, set, tuple, &way, direction, now);
	full_barrier(flow);
	if (!is_still_learnable(tuple, port))
		take_way(set, tuple, direction, &last);
}

/* conntrack has given the port to this flow: whose it was before has lost its entry there, and its ways go. */
static __always_inline void evict(const struct fast *f, const struct departure *d, const struct flow_key *but)
{
	int i, index = set_of(f, d->family, d->source, d->origin, d->port, d->origin_port, d->protocol);
	struct guard *guard = guard_of(index);
	struct way_set *set;
	struct flow_key other;
	struct flow *owner;
	bool found = false;

	if (!guard || !guard->answers)
		return;
	set = ways.lookup(&index);
	if (!set)
		return;
	for (i = 0; i < WAYS; i++) {
		struct way *way = &set->way[i];

		if (way->until && way->reason == REASON_REPLY && way->source_port == d->port && way->slot == (u16)d->slot &&
		    way->origin_port == d->origin_port && is_equal(way->origin, d->origin) &&
		    way->kind == kind_of(d->family, d->protocol) &&
		    (!but || way->client_port != but->client_port || !is_equal(way->client, but->client))) {
			tuple_of(&other, way);
			found = true;
			break;
		}
	}
	if (!found)
		return;
	owner = flows.lookup(&other);
	if (owner)
		unlearn(owner, &other);
}

static __always_inline bool glance_at(struct __sk_buff *skb, u32 family, struct glance *g)
{
	return family == IPV4 ? glance(skb, IPV4, g) : glance(skb, IPV6, g);
}

/* In to_origin: what was offered has become this. */
static __always_inline void learn_way_out(struct __sk_buff *skb, u32 family)
{
	u32 tag = skb->tc_index;
	int index = tag % TAGS;
	struct passing *from = passing.lookup(&index);
	struct fast *f = get_fast();
	struct glance g = {};
	const struct flow_key *tuple;
	struct flow *flow;

	if (!from || from->tag != tag || !f)
		return;
	from->tag = 0;
	tuple = &from->flow;
	if ((u32)bpf_jiffies64() - from->since > PASSING || family_of(tuple->client) != family ||
	    !is_learnable_at(skb->ifindex, OUTSIDE) || !is_learnable_at(from->in, INSIDE) || !glance_at(skb, family, &g))
		return;
	flow = flows.lookup((void *)tuple);
	/* A connection tracking helper may have changed its contents: then each packet must meet it. */
	if (!flow || !is_equal_in(family, g.to, tuple->origin) || !is_equal_in(family, g.from, flow->source) ||
	    g.to_port != tuple->origin_port || g.protocol != tuple->protocol || g.sequence != from->sequence ||
	    g.ack != from->ack || g.total != from->total || !is_untouched(skb, family, &g, &from->traits))
		return;
	if (flow->source_port != g.from_port) {
		struct departure d = {
			.family = family,
			.slot = flow->slot,
			.port = g.from_port,
			.origin_port = tuple->origin_port,
			.protocol = tuple->protocol,
		};

		copy_address(d.source, flow->source);
		copy_address(d.origin, tuple->origin);
		evict(f, &d, tuple);
		unlearn(flow, tuple);
		flow->source_port = g.from_port;
	}
	learn(skb, f, &g, flow, tuple, g.from_port, from->in, from->generation, ORIGINAL);
}

/* False: where its ports are is not known. Without Ethernet nothing has been learnt, and so nothing is found. */
static __always_inline bool departs(struct __sk_buff *skb, u32 family, struct departure *d)
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
		map_ipv4(d->source, ip->saddr);
		map_ipv4(d->origin, ip->daddr);
	} else {
		struct ipv6hdr *ip = data + ETH_HLEN;

		d->protocol = ip->nexthdr;
		copy_address(d->source, ip->saddr.in6_u.u6_addr32);
		copy_address(d->origin, ip->daddr.in6_u.u6_addr32);
	}
	d->family = family;
	d->port = *(u16 *)transport;
	d->origin_port = *(u16 *)(transport + 2);
	return d->protocol == IPPROTO_TCP || d->protocol == IPPROTO_UDP;
}

/* In to_origin: a packet of a flow that has not been answered. Answers to its port are for this flow alone; it may
 * have been another's until now, whose entry conntrack has deleted by command or for want of room. */
static __always_inline void open_way_out(struct __sk_buff *skb, u32 family, u32 slot)
{
	struct departure d = { .slot = slot };
	struct fast *f = get_fast();

	if (f && (family == IPV4 ? departs(skb, IPV4, &d) : departs(skb, IPV6, &d)))
		evict(f, &d, 0);
}

/* In to_client: an answer of this flow is leaving for its client. */
static __always_inline void learn_way_back(struct __sk_buff *skb, const struct packet *p, struct flow *flow)
{
	const struct flow_key *tuple = &p->tuple;
	struct fast *f = get_fast();
	u16 port = flow->source_port;
	struct glance g = {};

	if (f && port && skb->tc_index == port && is_learnable(flow, tuple) && is_worth_learning(flow, p, REPLY) &&
	    is_learnable_at(skb->ingress_ifindex, OUTSIDE) && is_learnable_at(skb->ifindex, INSIDE) &&
	    glance_at(skb, p->family, &g) && is_as_it_arrived(skb, p->family, &g, port))
		learn(skb, f, &g, flow, tuple, port, skb->ingress_ifindex, f->generation, REPLY);
}
