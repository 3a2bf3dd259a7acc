/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which egress a new flow gets. Exempt classes first, then the policies: per dimension one lookup
 * gives the set of rules that match there, the AND of the four sets is the set of rules that match,
 * and its lowest number is the first in precedence.
 */

struct verdict {
	u32 reason;
	u32 slot;
	u32 policy;
	u32 source[4];
	u32 active;              /* of the origin, before this flow */
	u32 limit;
};

/* The BPF back end has no count of trailing zeros, and branches would multiply the verifier's paths: so
 * the bits below the lowest one are counted (Warren, Hacker's Delight, 5-1). */
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

	return egress && egress->source[family & 1].planned && egress->source[family & 1].available;
}

/* The address of egress `slot` for this client; false if the slot has none here. */
static __always_inline bool source_of(u32 slot, const struct packet *p, u32 *source)
{
	struct egress *egress = egresses.lookup(&slot);
	struct source *s;
	int i;

	if (!egress)
		return false;
	s = &egress->source[p->family & 1];
#pragma unroll
	for (i = 0; i < 4; i++)
		source[i] = s->prefix[i] | (p->tuple.client[i] & ~s->mask[i]);
	return s->planned;
}

static __always_inline struct rule_set *set_of(u32 bank, u32 number)
{
	void *sets = rule_sets.lookup(&bank);

	return sets ? bpf_map_lookup_elem(sets, &number) : 0;
}

/* The sets of the three dimensions that are not the destination. */
static __always_inline struct rule_set *source_set(u32 bank, const struct packet *p)
{
	void *prefixes = source_prefixes.lookup(&bank);
	struct prefix_key key = { .length = 128 };
	u32 *number;

	copy_address(key.address, p->tuple.client);
	number = prefixes ? bpf_map_lookup_elem(prefixes, &key) : 0;
	return number ? set_of(bank, *number) : 0;
}

static __always_inline struct rule_set *port_set(u32 bank, const struct packet *p)
{
	void *ports = port_sets.lookup(&bank);
	u32 port = be16(p->tuple.origin_port);
	u32 *number = ports ? bpf_map_lookup_elem(ports, &port) : 0;

	return number ? set_of(bank, *number) : 0;
}

static __always_inline struct rule_set *protocol_set(u32 bank, const struct packet *p)
{
	void *protocols = protocol_sets.lookup(&bank);
	u32 protocol = p->tuple.protocol;
	u32 *number = protocols ? bpf_map_lookup_elem(protocols, &protocol) : 0;

	return number ? set_of(bank, *number) : 0;
}

/* The first rule that all four sets contain, or -1. */
static __always_inline int first_common(const struct rule_set *a, const struct rule_set *b,
					const struct rule_set *c, const struct rule_set *d)
{
	u64 candidates = a->summary & b->summary & c->summary & d->summary;
	int i;

	for (i = 0; i < RULE_WORDS && candidates; i++) {
		u32 word = lowest_bit(candidates) & (RULE_WORDS - 1);
		u64 common = a->words[word] & b->words[word] & c->words[word] & d->words[word];

		if (common)
			return word * 64 + lowest_bit(common);
		candidates &= candidates - 1;
	}
	return -1;
}

/* A policy's egress: the primary, or if that is unavailable its fallback. */
static __always_inline void follow(const struct rule *rule, const struct packet *p, struct verdict *v)
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

/* `stay` is false for a question (explain): then nothing is remembered. */
static __always_inline void take_nearest(const struct packet *p, struct verdict *v, bool stay)
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

static __always_inline void match(u32 bank, const struct packet *p, const struct destination *to,
				  struct verdict *v, bool stay)
{
	struct rule_set *source, *destination, *port, *protocol;
	void *all = rules.lookup(&bank);
	struct rule *rule = 0;
	int number;

	source = source_set(bank, p);
	destination = set_of(bank, to->set);
	port = port_set(bank, p);
	protocol = protocol_set(bank, p);
	if (!source || !destination || !port || !protocol || !all) {
		v->reason = REASON_NOT_READY;
		return;
	}
	number = first_common(source, destination, port, protocol);
	if (number < 0) {
		take_nearest(p, v, stay);
		return;
	}
	rule = bpf_map_lookup_elem(all, &number);
	if (rule)
		follow(rule, p, v);
	else
		v->reason = REASON_NOT_READY;
}

static __always_inline void choose(const struct settings *s, const struct packet *p, struct verdict *v,
				   bool stay)
{
	/* Read once: all look-ups are of one generation. */
	u32 bank = *(volatile const u32 *)&s->bank;
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
		match(bank, p, to, v, stay);
}

/* Slot, source address and reason of a new flow. Refused and blocked reasons have no source. */
static __always_inline void classify(const struct settings *s, const struct packet *p, struct verdict *v,
				     bool stay)
{
	choose(s, p, v, stay);
	if (v->reason >= REASON_LIMIT)
		return;
	if (!source_of(v->slot, p, v->source))
		v->reason = REASON_UNAVAILABLE;
}
