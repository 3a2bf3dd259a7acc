/* SPDX-License-Identifier: GPL-2.0-only */
/* The exact count of live flows of each origin: per (egress address, protocol, origin address, port). */

static __always_inline void origin_key_of(struct origin_key *key, const struct flow_key *tuple, const __be32 *address)
{
	copy_address(key->egress_address, address);
	copy_address(key->origin, tuple->origin);
	key->origin_port = tuple->origin_port;
	key->protocol = tuple->protocol;
	key->pad = 0;
}

/* The origin's entry, created if there is none. Null: the table is full. */
static __always_inline struct origin *get_origin(struct origin_key *key, u32 slot, u64 now)
{
	struct origin *origin = origins.lookup(key);
	struct origin fresh = { .slot = slot, .used = now };

	if (origin)
		return origin;
	origins.insert(key, &fresh);
	return origins.lookup(key);
}

/* Increments the count. 0, or the reason of the refusal. */
static __always_inline int count_origin(const struct flow_key *tuple, const __be32 *address, u32 slot, u32 limit,
					u64 now)
{
	struct origin_key key;
	int attempt, result;

	origin_key_of(&key, tuple, address);
	/* An entry that is being deleted is about to leave the map, so the lookup is repeated. */
	for (attempt = 0; attempt < 2; attempt++) {
		struct origin *origin = get_origin(&key, slot, now);

		if (!origin)
			return REASON_ORIGINS_FULL;
		result = 0;
		bpf_spin_lock(&origin->lock);
		if (origin->deleting) {
			result = REASON_ORIGINS_FULL;
		} else if (origin->active >= limit) {
			origin->refused++;
			result = REASON_LIMIT;
		} else {
			origin->active++;
			origin->total++;
			if (origin->active > origin->peak)
				origin->peak = origin->active;
		}
		origin->used = now;
		bpf_spin_unlock(&origin->lock);
		if (result != REASON_ORIGINS_FULL)
			return result;
	}
	return REASON_ORIGINS_FULL;
}

/* Decrements the count. `never_was`: the flow was admitted, but could not be created. */
static __always_inline void uncount_origin(const struct flow_key *tuple, const __be32 *address, bool never_was)
{
	struct origin_key key;
	struct origin *origin;
	bool unused = false;

	origin_key_of(&key, tuple, address);
	origin = origins.lookup(&key);
	if (!origin)
		return;
	bpf_spin_lock(&origin->lock);
	if (origin->active) {
		origin->active--;
		unused = !origin->active;
	}
	origin->total -= never_was;
	bpf_spin_unlock(&origin->lock);
	if (unused)
		unused_origins.push(&key, BPF_EXIST);
}

/* Deletes an origin if it has no live flow. True: the origin is deleted. */
static __always_inline bool forget_origin(struct origin_key *key)
{
	struct origin *origin = origins.lookup(key);
	bool gone = false;

	if (!origin)
		return false;
	bpf_spin_lock(&origin->lock);
	if (!origin->active && !origin->deleting) {
		origin->deleting = 1;
		gone = true;
	}
	bpf_spin_unlock(&origin->lock);
	if (gone)
		origins.delete(key);
	return gone;
}

static __always_inline u32 active_at(const struct flow_key *tuple, const __be32 *address)
{
	struct origin_key key;
	struct origin *origin;

	origin_key_of(&key, tuple, address);
	origin = origins.lookup(&key);
	return origin ? origin->active : 0;
}
