/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The choice of the egress of a new flow: first the exempt classes, then the policies. In each dimension one lookup
 * gives the set of rules that match in it; the AND of the sets is the set of rules that match, and its
 * lowest number is the first in precedence. A dimension that no rule uses costs no lookup.
 */

/* The index of the lowest set bit. The BPF back end has no count of trailing zeros, and branches would multiply the
 * verifier's paths: so this counts the bits below the lowest one (Warren, Hacker's Delight, 5-1). */
static __always_inline u32 lowest_bit(u64 word)
{
	u64 below = (word & -word) - 1;

	below -= below >> 1 & 0x5555555555555555;
	below = (below & 0x3333333333333333) + (below >> 2 & 0x3333333333333333);
	below = (below + (below >> 4)) & 0x0f0f0f0f0f0f0f0f;
	return below * 0x0101010101010101 >> 56;
}

static __always_inline bool is_available(u32 slot, u32 family)
{
	struct egress *egress = egresses.lookup(&slot);

	return egress && egress->address[family & 1].local && egress->address[family & 1].available;
}

/* The address of egress `slot` for this client, from its word `first` on; false if the slot has none at this
 * gateway. */
static __always_inline bool egress_address_of(u32 slot, u32 family, const __be32 *client, __be32 *address, int first)
{
	struct egress *egress = egresses.lookup(&slot);
	struct egress_address *a;
	int i;

	if (!egress)
		return false;
	a = &egress->address[family & 1];
#pragma unroll
	for (i = 0; i < 4; i++)
		if (i >= first)
			address[i] = a->prefix[i] | (client[i] & ~a->mask[i]);
	return a->local;
}

enum dimension {
	DESTINATION,
	SOURCE,
	SOURCE_PORT,
	PORT,
	PROTOCOL,
	SOURCE_REGION,
	DESTINATION_REGION,
	CLIENT,
	HOST,
	MATCHES,
};

/* The facts that a question (explain) replaces by assumptions: bit n stands for element n of the map `overrides`. */
enum override { OVERRIDE_CLIENT = 1, OVERRIDE_HOST = 2 };

/* The sets of rules that match, by dimension. A dimension that no rule uses has the destination's set, which does
 * not change the intersection. */
struct matches {
	const struct rule_set *of[MATCHES];
	u32 missing; /* 1: a set that must exist does not */
};

static __always_inline void intersect(struct matches *m, int dimension, void *sets, const u32 *number)
{
	const struct rule_set *set = number ? bpf_map_lookup_elem(sets, number) : 0;

	if (set)
		m->of[dimension] = set;
	else
		m->missing = 1;
}

static __always_inline u32 *lookup(void *map, const void *key)
{
	return map ? bpf_map_lookup_elem(map, key) : 0;
}

static __always_inline u32 region_of(void *regions, const __be32 *address)
{
	struct prefix_key key = { .length = 128 };
	u32 *region;

	copy_address(key.address, address);
	region = lookup(regions, &key);
	return region ? *region : 0;
}

static __always_inline u32 profile_of(const struct packet *p)
{
	struct client_key client;
	u32 *profile;

	copy_address(client.client, p->tuple.client);
	profile = sessions.lookup(&client);
	return profile ? *profile : 0;
}

/* The set of names that the address has for this client; if there is none, the one that it has for every client. */
static __always_inline u32 names_of(const struct packet *p)
{
	struct host_key host;
	u32 *names;

	copy_address(host.client, p->tuple.client);
	copy_address(host.address, p->tuple.origin);
	names = hosts.lookup(&host);
	if (!names) {
		host.client[0] = host.client[1] = host.client[2] = host.client[3] = 0;
		names = hosts.lookup(&host);
	}
	return names ? *names : 0;
}

static __always_inline void intersect_packet(struct matches *m, u32 uses, u32 bank, void *sets, const struct packet *p)
{
	u32 key;

	if (uses & USES_SOURCE) {
		struct prefix_key source = { .length = 128 };

		copy_address(source.address, p->tuple.client);
		intersect(m, SOURCE, sets, lookup(source_prefixes.lookup(&bank), &source));
	}
	if (uses & USES_SOURCE_PORT) {
		key = be16(p->tuple.client_port);
		intersect(m, SOURCE_PORT, sets, lookup(source_port_sets.lookup(&bank), &key));
	}
	if (uses & USES_PORT) {
		key = be16(p->tuple.origin_port);
		intersect(m, PORT, sets, lookup(port_sets.lookup(&bank), &key));
	}
	if (uses & USES_PROTOCOL) {
		key = p->tuple.protocol;
		intersect(m, PROTOCOL, sets, lookup(protocol_sets.lookup(&bank), &key));
	}
}

static __always_inline void intersect_regions(struct matches *m, u32 uses, u32 bank, void *sets, const struct packet *p)
{
	void *by_address = regions.lookup(&bank), *by_region = region_sets.lookup(&bank);
	u32 region;
	u32 *numbers;

	if (uses & USES_SOURCE_REGION) {
		region = region_of(by_address, p->tuple.client);
		numbers = lookup(by_region, &region);
		intersect(m, SOURCE_REGION, sets, numbers);
	}
	if (uses & USES_DESTINATION_REGION) {
		region = region_of(by_address, p->tuple.origin);
		numbers = lookup(by_region, &region);
		intersect(m, DESTINATION_REGION, sets, numbers ? numbers + 1 : 0);
	}
}

static __always_inline void intersect_override(struct matches *m, int dimension, int which)
{
	m->of[dimension] = overrides.lookup(&which) ?: m->of[dimension];
}

static __always_inline void intersect_facts(struct matches *m, u32 uses, u32 bank, void *sets, const struct packet *p,
					    u32 overridden)
{
	u32 key;

	if (overridden & OVERRIDE_CLIENT) {
		intersect_override(m, CLIENT, 0);
	} else if (uses & USES_CLIENT) {
		key = profile_of(p);
		intersect(m, CLIENT, sets, lookup(profile_sets.lookup(&bank), &key));
	}
	if (overridden & OVERRIDE_HOST) {
		intersect_override(m, HOST, 1);
	} else if (uses & USES_HOST) {
		key = names_of(p);
		intersect(m, HOST, sets, lookup(name_sets.lookup(&bank), &key));
	}
}

/* The first rule that all sets contain, or -1. */
static __always_inline int first_common(const struct matches *m)
{
	int group, i, d;

#pragma unroll
	for (group = 0; group < SUMMARY_WORDS; group++) {
		u64 candidates = ~0ULL;

#pragma unroll
		for (d = 0; d < MATCHES; d++)
			candidates &= m->of[d]->summary[group];
		for (i = 0; i < 64 && candidates; i++) {
			u32 word = group * 64 + (lowest_bit(candidates) & 63);
			u64 common = ~0ULL;

#pragma unroll
			for (d = 0; d < MATCHES; d++)
				common &= m->of[d]->words[word];
			if (common)
				return word * 64 + lowest_bit(common);
			candidates &= candidates - 1;
		}
	}
	return -1;
}

/* A policy's egress: the primary or, if that is unavailable, its fallback. */
static __always_inline void resolve_egress(const struct rule *rule, const struct packet *p, struct verdict *v)
{
	u32 slot = rule->slot[p->family & 1];

	v->policy = rule->policy;
	if (slot == 0) {
		v->slot = 0;
		v->reason = REASON_DEFAULT;
		return;
	}
	if (is_available(slot, p->family)) {
		v->slot = slot;
		v->reason = REASON_POLICY;
		return;
	}
	slot = rule->fallback[p->family & 1];
	v->slot = slot;
	if (slot == 0)
		v->reason = REASON_FALLBACK_SHARED;
	else
		v->reason = is_available(slot, p->family) ? REASON_FALLBACK : REASON_UNAVAILABLE;
}

/* The nearest egress. `stay` is false for a question (explain): then it is not stored as the client's. */
static __always_inline void resolve_nearest(const struct packet *p, struct verdict *v, bool stay)
{
	struct client_key client = {};
	u32 bucket, *slot;

	v->reason = REASON_NEAREST;
	copy_address(client.client, p->tuple.client);
	slot = clients.lookup(&client);
	if (slot && is_available(*slot, p->family)) {
		v->slot = *slot;
		return;
	}
	bucket = client.client[0] ^ client.client[1] ^ client.client[2] ^ client.client[3];
	bucket = (bucket * 0x9e3779b1 /* 2^32 / golden ratio: Fibonacci hashing */) >> 22;
	bucket = bucket * FAMILIES + p->family;
	slot = nearest.lookup(&bucket);
	if (!slot || !is_available(*slot, p->family)) {
		v->reason = REASON_UNAVAILABLE;
		return;
	}
	v->slot = *slot;
	if (stay)
		clients.update(&client, slot);
}

static __always_inline void match(u32 uses, u32 bank, const struct packet *p, const struct destination *to,
				  struct verdict *v, bool stay, u32 overridden)
{
	void *sets = rule_sets.lookup(&bank), *all = rules.lookup(&bank);
	const struct rule_set *destination;
	struct matches m = {};
	struct rule *rule;
	int number, d;

	v->reason = REASON_NOT_READY;
	if (!sets || !all)
		return;
	destination = bpf_map_lookup_elem(sets, &to->set);
	if (!destination)
		return;
#pragma unroll
	for (d = 0; d < MATCHES; d++)
		m.of[d] = destination;
	intersect_packet(&m, uses, bank, sets, p);
	if (uses & (USES_SOURCE_REGION | USES_DESTINATION_REGION))
		intersect_regions(&m, uses, bank, sets, p);
	intersect_facts(&m, uses, bank, sets, p, overridden);
	if (m.missing)
		return;
	number = first_common(&m);
	if (number < 0) {
		resolve_nearest(p, v, stay);
		return;
	}
	rule = bpf_map_lookup_elem(all, &number);
	if (rule)
		resolve_egress(rule, p, v);
}

static __always_inline void choose(const struct settings *s, const struct packet *p, struct verdict *v, bool stay,
				   u32 overridden)
{
	/* Read once, so that all lookups use one bank. */
	u32 uses = *(volatile const u32 *)&s->bank;
	u32 bank = uses & BANK;
	void *prefixes = destination_prefixes.lookup(&bank);
	struct prefix_key key = { .length = 128 };
	struct destination *to;

	v->slot = 0;
	if (is_icmp(p)) {
		v->reason = REASON_ICMP;
		return;
	}
	if (p->tuple.protocol != IPPROTO_TCP && p->tuple.protocol != IPPROTO_UDP) {
		v->reason = REASON_PROTOCOL;
		return;
	}
	if (p->tuple.origin_port == be16(53)) {
		v->reason = REASON_DNS;
		return;
	}
	copy_address(key.address, p->tuple.origin);
	to = prefixes ? bpf_map_lookup_elem(prefixes, &key) : 0;
	if (!to) {
		v->reason = REASON_NOT_READY;
		return;
	}
	if (to->private_network)
		v->reason = REASON_TUNNEL;
	else if (p->tuple.protocol == IPPROTO_TCP && !s->proxy_tcp)
		v->reason = REASON_TCP_OFF;
	else if (p->tuple.protocol == IPPROTO_UDP && !s->proxy_udp)
		v->reason = REASON_UDP_OFF;
	else
		match(uses, bank, p, to, v, stay, overridden);
}

/* Slot, source address and reason of a new flow. Refused and blocked reasons have no source. */
static __always_inline void classify(const struct settings *s, const struct packet *p, struct verdict *v, bool stay,
				     u32 overridden)
{
	choose(s, p, v, stay, overridden);
	if (!is_egress(v->reason))
		return;
	if (!egress_address_of(v->slot, p->family, p->tuple.client, v->egress_address, 0))
		v->reason = REASON_UNAVAILABLE;
	else if (!v->slot && !is_available(0, p->family))
		v->reason = REASON_SHARED_UNAVAILABLE;
}
