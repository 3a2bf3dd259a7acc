/* SPDX-License-Identifier: GPL-2.0-only */
/* Admission: the exact count of live flows per (egress address, protocol, origin address, port). */

static __always_inline void origin_key_of(struct origin_key *key, const struct flow_key *tuple,
					  const u32 *source)
{
	copy_address(key->source, source);
	copy_address(key->origin, tuple->origin);
	key->origin_port = tuple->origin_port;
	key->protocol = tuple->protocol;
	key->pad = 0;
}

/* Raises the counter. 0, or the reason of the refusal. */
static __always_inline int admit(const struct flow_key *tuple, struct verdict *v, u32 limit, u64 now)
{
	struct origin_key key;
	struct origin *origin;
	int try, result;

	origin_key_of(&key, tuple, v->source);
	/* An entry that is just being forgotten is looked up again; it is gone in a moment. */
	for (try = 0; try < 2; try++) {
		origin = origins.lookup(&key);
		if (!origin) {
			struct origin fresh = { .slot = v->slot, .used = now };

			origins.insert(&key, &fresh);
			origin = origins.lookup(&key);
			if (!origin)
				return REASON_ORIGINS_FULL;
		}
		result = 0;
		bpf_spin_lock(&origin->lock);
		if (origin->dead) {
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

/* Lowers the counter; to be called exactly once per admitted flow (struct flow.counted). `never_was`: the
 * flow was admitted, but could not be entered. */
static __always_inline void give_back(const struct flow_key *tuple, const u32 *source, bool never_was)
{
	struct origin_key key;
	struct origin *origin;

	origin_key_of(&key, tuple, source);
	origin = origins.lookup(&key);
	if (!origin)
		return;
	bpf_spin_lock(&origin->lock);
	if (origin->active)
		origin->active--;
	origin->total -= never_was;
	bpf_spin_unlock(&origin->lock);
}

static __always_inline u32 active_at(const struct flow_key *tuple, const u32 *source)
{
	struct origin_key key;
	struct origin *origin;

	origin_key_of(&key, tuple, source);
	origin = origins.lookup(&key);
	return origin ? origin->active : 0;
}
