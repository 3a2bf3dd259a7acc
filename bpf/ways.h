/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The table of learnt ways: where a tuple's element is, and how it is written while others read it.
 *
 * Readers hold no lock. A writer makes the element invalid first (`until` 0) and valid last; a reader looks at
 * tuple and `until` once more after he has read the rest. Stores become visible in their order on the machines that
 * this runs on; where they didn't, a packet could get the port of another flow.
 */

enum {
	SETS_SHIFT = 4,
	PORTS_SHIFT = 5,
};

#define barrier() __asm__ volatile("" ::: "memory")

static __always_inline u64 mix(u64 hash, u64 word)
{
	hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
	return hash ^ hash >> 32;
}

static __always_inline u64 pair(u32 a, u32 b)
{
	return (u64)a << 32 | b;
}

static __always_inline u8 kind_of(u32 family, u8 protocol)
{
	return family == IPV4 ? protocol : protocol | IPV6_KIND;
}

/* The number of the set where a tuple has its place, in network order throughout; `near` is the client, or the
 * address that it has been given, `far` the origin. Sixteen sets are a page of memory, and 32 ports in sequence share
 * it: what a processor pays for many flows is as much the pages as the lines. */
static __always_inline u32 set_of(const struct fast *f, u32 family, const u32 *near, const u32 *far, u16 near_port,
				  u16 far_port, u8 protocol)
{
	u32 port = be16(near_port);
	u64 hash = mix(f->seed, pair(protocol, (port >> PORTS_SHIFT) << 16 | far_port));

	hash = mix(hash, pair(near[3], far[3]));
	if (family == IPV6) {
		hash = mix(hash, pair(near[0], near[1]));
		hash = mix(hash, pair(far[0], far[1]));
		hash = mix(hash, pair(near[2], far[2]));
	}
	return (mix(hash, 0) >> 32 << SETS_SHIFT | (port & ((1 << SETS_SHIFT) - 1))) & (WAY_SETS - 1);
}

/* Where in its set a tuple is looked for first: others of these ports are elsewhere. */
static __always_inline u32 first_of(u16 near_port)
{
	return be16(near_port) >> SETS_SHIFT & (WAYS - 1);
}

static __always_inline bool is_equal(const u32 *a, const u32 *b)
{
	return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]));
}

/* Of one family; of IPv4 addresses the last word says it all. */
static __always_inline bool is_equal_in(u32 family, const u32 *a, const u32 *b)
{
	return family == IPV4 ? a[3] == b[3] : is_equal(a, b);
}

static __always_inline u32 family_of(const u32 *address)
{
	return is_mapped(address) ? IPV4 : IPV6;
}

static __always_inline bool is_way_of(const struct way *way, const struct flow_key *tuple, enum direction direction)
{
	return way->until && is_equal(way->client, tuple->client) && is_equal(way->origin, tuple->origin) &&
	       way->client_port == tuple->client_port && way->origin_port == tuple->origin_port &&
	       way->kind == kind_of(family_of(tuple->client), tuple->protocol) && (way->reason == REASON_REPLY) == (direction == REPLY);
}

/* The set where a direction of a flow has its place; the flow's source and port after translation are known. */
static __always_inline u32 set_of_flow(const struct fast *f, const struct flow_key *tuple, const u32 *source,
				       u16 source_port, enum direction direction)
{
	u32 family = family_of(tuple->client);

	if (direction == ORIGINAL)
		return set_of(f, family, tuple->client, tuple->origin, tuple->client_port, tuple->origin_port,
			      tuple->protocol);
	return set_of(f, family, source, tuple->origin, source_port, tuple->origin_port, tuple->protocol);
}

/* Whether what is good `until` then is so now; not for what is so old that the clock has come round. What is learnt
 * twice within a jiffy is good for one more. */
static __always_inline bool is_good(u32 until, u32 now, const struct fast *f)
{
	return until && until - now - 1 <= f->lifetime;
}

static __always_inline struct guard *guard_of(u32 number)
{
	int index = number & (WAY_SETS - 1);

	return guards.lookup(&index);
}

static __always_inline void tuple_of(struct flow_key *tuple, const struct way *way)
{
	copy_address(tuple->client, way->client);
	copy_address(tuple->origin, way->origin);
	tuple->client_port = way->client_port;
	tuple->origin_port = way->origin_port;
	tuple->protocol = way->kind & ~IPV6_KIND;
	tuple->pad[0] = 0;
	tuple->pad[1] = 0;
	tuple->pad[2] = 0;
}

/* What a way knew that its flow did not. */
struct last_seen {
	u32 packets;
	u32 bytes;
	u32 end;
	u16 generation;
	u16 hop;
	u16 largest;
};

static __always_inline void note_last(struct last_seen *last, const struct way *way)
{
	last->packets = way->packets;
	last->bytes = way->bytes;
	last->end = way->end;
	last->generation = way->generation;
	last->hop = way->hop;
	last->largest = way->largest;
}

/* Its packets belong to its flow. */
static __always_inline void add_up(struct flow *flow, const struct last_seen *last, enum direction direction)
{
	__sync_fetch_and_add(&flow->fast_packets[direction & 1], last->packets);
	__sync_fetch_and_add(&flow->fast_bytes[direction & 1], last->bytes);
}

/* Under the guard's lock. */
static __always_inline void count_answers(struct guard *guard, bool before, bool after)
{
	if (after && !before)
		guard->answers++;
	if (before && !after && guard->answers)
		guard->answers--;
}

/* Enters a way; the flow has none in this direction. Nothing happens if the set is full of others that are good. */
static __always_inline void put_way(const struct fast *f, u32 number, const struct flow_key *tuple, struct way *way,
				    enum direction direction, u32 now)
{
	u32 first = first_of(direction == ORIGINAL ? tuple->client_port : way->source_port);
	int index = number;
	struct way_set *set = ways.lookup(&index);
	struct guard *guard = guard_of(number);
	struct last_seen last = {};
	struct flow_key displaced = {};
	enum direction side = ORIGINAL;
	u32 until = way->until;
	struct flow *flow;
	int i, at = -1;

	if (!set || !guard)
		return;
	way->until = 0;
	bpf_spin_lock(&guard->lock);
#pragma unroll
	for (i = WAYS - 1; i >= 0; i--) {
		struct way *there = &set->way[(first + i) & (WAYS - 1)];

		if (!is_good(there->until, now, f) || there->generation != f->generation)
			at = first + i;
	}
#pragma unroll
	for (i = 0; i < WAYS; i++)
		/* Another processor has just entered it. */
		if (is_way_of(&set->way[i], tuple, direction))
			at = i;
	if (at >= 0) {
		struct way *there = &set->way[at & (WAYS - 1)];

		side = there->reason == REASON_REPLY ? REPLY : ORIGINAL;
		if (there->until && there->packets) {
			tuple_of(&displaced, there);
			note_last(&last, there);
		}
		/* A reader takes equal ones for the same. */
		until += until == there->until;
		count_answers(guard, there->until && side == REPLY, direction == REPLY);
		there->until = 0;
		barrier();
		*there = *way;
		barrier();
		there->until = until;
	}
	bpf_spin_unlock(&guard->lock);
	if (!last.packets)
		return;
	flow = flows.lookup(&displaced);
	if (flow)
		add_up(flow, &last, side);
}

/* Deletes a flow's way in one direction. True: there was one, and `last` is what it knew. */
static __always_inline bool take_way(u32 number, const struct flow_key *tuple, enum direction direction,
				     struct last_seen *last)
{
	int index = number;
	struct way_set *set = ways.lookup(&index);
	struct guard *guard = guard_of(number);
	bool found = false;
	int i;

	if (!set || !guard)
		return false;
	bpf_spin_lock(&guard->lock);
	for (i = 0; i < WAYS; i++)
		if (is_way_of(&set->way[i], tuple, direction)) {
			note_last(last, &set->way[i]);
			set->way[i].until = 0;
			count_answers(guard, direction == REPLY, false);
			found = true;
		}
	bpf_spin_unlock(&guard->lock);
	return found;
}
