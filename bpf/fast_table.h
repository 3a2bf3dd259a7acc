/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The table of fast-path entries: the bucket of a tuple, and the writing of an entry while other processors read it.
 *
 * Readers hold no lock. A writer makes the entry invalid first (`until` 0) and valid last; a reader compares
 * tuple and `until` again after it has read the rest. Stores become visible in their order on the machines that the
 * enforcer runs on; if they did not, a packet could get the port of another flow.
 */

enum {
	BUCKETS_SHIFT = 4,
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

/* The index of a tuple's bucket; addresses and ports are in network order. `near` is the client or its egress
 * address, `far` the origin. Sixteen buckets are a page of memory, which 32 consecutive ports share: with many
 * flows, the number of pages costs a processor as much as the number of cache lines. */
static __always_inline u32 bucket_of(const struct fast_path *f, u32 family, const __be32 *near, const __be32 *far,
				     __be16 near_port, __be16 far_port, u8 protocol)
{
	u32 port = be16(near_port);
	u64 hash = mix(f->seed, pair(protocol, (port >> PORTS_SHIFT) << 16 | far_port));

	hash = mix(hash, pair(near[3], far[3]));
	if (family == IPV6) {
		hash = mix(hash, pair(near[0], near[1]));
		hash = mix(hash, pair(far[0], far[1]));
		hash = mix(hash, pair(near[2], far[2]));
	}
	return (mix(hash, 0) >> 32 << BUCKETS_SHIFT | (port & ((1 << BUCKETS_SHIFT) - 1))) & (FAST_BUCKETS - 1);
}

/* The position in its bucket at which a search begins; it differs between ports that share a bucket. */
static __always_inline u32 first_of(__be16 near_port)
{
	return be16(near_port) >> BUCKETS_SHIFT & (BUCKET_ENTRIES - 1);
}

static __always_inline bool is_equal(const __be32 *a, const __be32 *b)
{
	return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]));
}

/* Compares two addresses of one family; IPv4 addresses differ in the last word only. */
static __always_inline bool is_equal_in(u32 family, const __be32 *a, const __be32 *b)
{
	return family == IPV4 ? a[3] == b[3] : is_equal(a, b);
}

static __always_inline u32 family_of(const __be32 *address)
{
	return is_mapped(address) ? IPV4 : IPV6;
}

static __always_inline bool is_entry_of(const struct fast_entry *entry, const struct flow_key *tuple,
					enum direction direction)
{
	return entry->until && is_equal(entry->client, tuple->client) && is_equal(entry->origin, tuple->origin) &&
	       entry->client_port == tuple->client_port && entry->origin_port == tuple->origin_port &&
	       entry->kind == kind_of(family_of(tuple->client), tuple->protocol) &&
	       (entry->reason == REASON_REPLY) == (direction == REPLY);
}

/* The bucket of one direction of a flow whose egress address and port are known. */
static __always_inline u32 bucket_of_flow(const struct fast_path *f, const struct flow_key *tuple,
					  const __be32 *address, __be16 egress_port, enum direction direction)
{
	u32 family = family_of(tuple->client);

	if (direction == ORIGINAL)
		return bucket_of(f, family, tuple->client, tuple->origin, tuple->client_port, tuple->origin_port,
				 tuple->protocol);
	return bucket_of(f, family, address, tuple->origin, egress_port, tuple->origin_port, tuple->protocol);
}

/* Whether an entry that expires at `until` is valid now; false for one so old that the clock has wrapped. An entry
 * that is created twice within a jiffy is valid for one jiffy more. */
static __always_inline bool is_valid(u32 until, u32 now, const struct fast_path *f)
{
	return until && until - now - 1 <= f->lifetime;
}

static __always_inline struct bucket_lock *bucket_lock_of(u32 number)
{
	int index = number & (FAST_BUCKETS - 1);

	return bucket_locks.lookup(&index);
}

static __always_inline void tuple_of(struct flow_key *tuple, const struct fast_entry *entry)
{
	copy_address(tuple->client, entry->client);
	copy_address(tuple->origin, entry->origin);
	tuple->client_port = entry->client_port;
	tuple->origin_port = entry->origin_port;
	tuple->protocol = entry->kind & ~IPV6_KIND;
	tuple->pad[0] = 0;
	tuple->pad[1] = 0;
	tuple->pad[2] = 0;
}

/* The values of an entry that its flow does not have. */
struct entry_state {
	u32 packets;
	u32 bytes;
	u32 end;
	u16 generation;
	u16 next_hop;
	u16 largest;
};

static __always_inline void copy_entry_state(struct entry_state *last, const struct fast_entry *entry)
{
	last->packets = entry->packets;
	last->bytes = entry->bytes;
	last->end = entry->end;
	last->generation = entry->generation;
	last->next_hop = entry->next_hop;
	last->largest = entry->largest;
}

/* Adds an entry's packets to its flow. */
static __always_inline void add_counts(struct flow *flow, const struct entry_state *last, enum direction direction)
{
	__sync_fetch_and_add(&flow->fast_packets[direction & 1], last->packets);
	__sync_fetch_and_add(&flow->fast_bytes[direction & 1], last->bytes);
}

/* Under the bucket's lock. */
static __always_inline void count_reply_entries(struct bucket_lock *bucket_lock, bool before, bool after)
{
	if (after && !before)
		bucket_lock->reply_entries++;
	if (before && !after && bucket_lock->reply_entries)
		bucket_lock->reply_entries--;
}

/* Under the bucket's lock: the position at which the entry of this direction may be written, `first` if that is free;
 * negative: all entries are valid and belong to other flows. */
static __always_inline int find_room(const struct fast_path *f, const struct fast_bucket *bucket,
				     const struct flow_key *tuple, enum direction direction, u32 first, u32 now)
{
	int i, at = -1;

#pragma unroll
	for (i = BUCKET_ENTRIES - 1; i >= 0; i--) {
		const struct fast_entry *there = &bucket->entry[(first + i) & (BUCKET_ENTRIES - 1)];

		if (!is_valid(there->until, now, f) || there->generation != f->generation)
			at = first + i;
	}
#pragma unroll
	for (i = 0; i < BUCKET_ENTRIES; i++)
		/* Another processor has inserted this entry in the meantime. */
		if (is_entry_of(&bucket->entry[i], tuple, direction))
			at = i;
	return at;
}

/* Inserts an entry; the flow has none in this direction. Does nothing if the bucket is full of valid entries. */
static __always_inline void insert_entry(const struct fast_path *f, u32 number, const struct flow_key *tuple,
					 struct fast_entry *entry, enum direction direction, u32 now)
{
	u32 first = first_of(direction == ORIGINAL ? tuple->client_port : entry->egress_port);
	int index = number;
	struct fast_bucket *bucket = fast_buckets.lookup(&index);
	struct bucket_lock *bucket_lock = bucket_lock_of(number);
	struct entry_state last = {};
	struct flow_key displaced = {};
	enum direction side = ORIGINAL;
	u32 until = entry->until;
	struct flow *flow;
	int at;

	if (!bucket || !bucket_lock)
		return;
	entry->until = 0;
	bpf_spin_lock(&bucket_lock->lock);
	at = find_room(f, bucket, tuple, direction, first, now);
	if (at >= 0) {
		struct fast_entry *there = &bucket->entry[at & (BUCKET_ENTRIES - 1)];

		side = there->reason == REASON_REPLY ? REPLY : ORIGINAL;
		if (there->until && there->packets) {
			tuple_of(&displaced, there);
			copy_entry_state(&last, there);
		}
		/* A reader cannot distinguish two entries with equal `until`. */
		until += until == there->until;
		count_reply_entries(bucket_lock, there->until && side == REPLY, direction == REPLY);
		there->until = 0;
		barrier();
		*there = *entry;
		barrier();
		there->until = until;
	}
	bpf_spin_unlock(&bucket_lock->lock);
	if (!last.packets)
		return;
	flow = flows.lookup(&displaced);
	if (flow)
		add_counts(flow, &last, side);
}

/* Deletes a flow's entry of one direction. True: there was one, and `last` contains its values. */
static __always_inline bool delete_entry(u32 number, const struct flow_key *tuple, enum direction direction,
					 struct entry_state *last)
{
	int index = number;
	struct fast_bucket *bucket = fast_buckets.lookup(&index);
	struct bucket_lock *bucket_lock = bucket_lock_of(number);
	bool found = false;
	int i;

	if (!bucket || !bucket_lock)
		return false;
	bpf_spin_lock(&bucket_lock->lock);
	for (i = 0; i < BUCKET_ENTRIES; i++)
		if (is_entry_of(&bucket->entry[i], tuple, direction)) {
			copy_entry_state(last, &bucket->entry[i]);
			bucket->entry[i].until = 0;
			count_reply_entries(bucket_lock, direction == REPLY, false);
			found = true;
		}
	bpf_spin_unlock(&bucket_lock->lock);
	return found;
}
