/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The kernel side of the enforcer, from a packet's arrival to its departure:
 *
 *   from_client   TC ingress, inside    a flow that is known? its egress      → the mark
 *   decide        its tail              else: which egress, is there room?    → the mark
 *   (kernel)      route, nft: refuse, forward, translate by the mark
 *   to_origin     TC egress, outside    the leak guard: no source but egress addresses
 *   from_origin   TC ingress, outside   neighbour solicitations for on-link ranges
 *   to_client     TC egress, inside     follows the flow's replies
 *   expect        its tail              enters what an origin opens for a conntrack helper
 *
 * and programs that user space runs with BPF_PROG_TEST_RUN: explain, and those of sweep.h.
 */
#include <linux/errno.h>
#include <linux/pkt_cls.h>
#include "maps.h"
#include "metrics.h"
#include "mark.h"
#include "packet.h"
#include "route.h"
#include "policy.h"
#include "origin.h"
#include "client.h"
#include "admission.h"
#include "fast_table.h"
#include "fastpath.h"
#include "fast_entries.h"
#include "flow.h"
#include "eviction.h"
#include "sweep.h"
#include "neighbour.h"

/* The next filter, if there is one, has its say too. */
#define PASS TC_ACT_UNSPEC

static __always_inline int refuse(struct __sk_buff *skb, const struct settings *s, u32 reason)
{
	count(reason, 1);
	set_mark(skb, s, MARK_REFUSED);
	skb->tc_index = TAG_MARKED;
	return PASS;
}

static __always_inline int block(u32 reason)
{
	count(reason, 0);
	return TC_ACT_SHOT;
}

static __always_inline void count_policy_hit(u32 policy, u64 now)
{
	struct hits *hits = policy_hits.lookup(&policy);

	if (hits) {
		__sync_fetch_and_add(&hits->flows, 1);
		hits->last = now;
	}
}

/* The flow that an ICMP error from a client is about: the packet inside came from the origin. */
static __always_inline struct flow *flow_of_error(struct __sk_buff *skb, const struct packet *p)
{
	struct flow_key key = {};
	u32 inner = p->transport + 8;
	u32 ports;

	if (p->family == IPV4) {
		struct iphdr ip;

		if ((p->icmp_type != ICMP_DEST_UNREACH && p->icmp_type != ICMP_TIME_EXCEEDED &&
		     p->icmp_type != ICMP_PARAMETERPROB) || load(skb, inner, &ip, sizeof(ip)) < 0)
			return 0;
		key.protocol = ip.protocol;
		map_ipv4(key.client, ip.daddr);
		map_ipv4(key.origin, ip.saddr);
		inner += ip.ihl * 4;
	} else {
		struct ipv6hdr ip;
		int i;

		if (p->icmp_type >= ICMPV6_FIRST_QUERY || load(skb, inner, &ip, sizeof(ip)) < 0)
			return 0;
		key.protocol = ip.nexthdr;
		copy_address(key.client, ip.daddr.in6_u.u6_addr32);
		copy_address(key.origin, ip.saddr.in6_u.u6_addr32);
		inner += sizeof(ip);
		for (i = 0; i < EXTENSION_HEADERS && is_extension(key.protocol); i++) {
			u8 header[8];

			if (load(skb, inner, header, sizeof(header)) < 0)
				return 0;
			inner += extension_length(key.protocol, header);
			key.protocol = header[0];
		}
	}
	if (load(skb, inner, &ports, sizeof(ports)) < 0)
		return 0;
	key.origin_port = ports & 0xffff;
	key.client_port = ports >> 16;
	return flows.lookup(&key);
}

/*
 * What from_client and explain hand to decide, which they call as a tail: so the verifier looks at the decision
 * once, whatever came before. A question has a scratch of its own, apart from packets that arrive meanwhile.
 */
struct scratch {
	struct packet packet;
	u64 now;
};
enum scratch_slot { SCRATCH_PACKET, SCRATCH_EXPLAIN, SCRATCHES };
BPF_PERCPU_ARRAY(scratch, struct scratch, SCRATCHES);
enum stage { DECIDE, EXPECT, STAGES };
/* Pinned for itself: what was loaded before keeps its own until nothing calls it any more. */
BPF_TABLE_PINNED("prog", u32, u32, stages, STAGES, STAGES_PIN, 0);

/* cb[0]: which scratch, and for a question its overrides. */
enum { OVERRIDE_SHIFT = 1 };

static __always_inline struct scratch *get_scratch(u32 slot)
{
	int index = slot & SCRATCH_EXPLAIN;

	return scratch.lookup(&index);
}

/* Nothing is to pass the gateway, for this reason, but the gateway itself can be reached. */
static __always_inline int pass_local(struct __sk_buff *skb, const struct packet *p, u32 reason)
{
	u32 leaves_by;

	if (route(skb, p, &leaves_by) != REASON_LOCAL)
		return block(reason);
	count(REASON_LOCAL, 0);
	return PASS;
}

enum { UNKNOWN_FLOW, KNOWN_FLOW };

/* A packet of a flow that is known: gets the flow's mark, or after a reset the refusal's. */
static __always_inline int continue_flow(struct __sk_buff *skb, const struct settings *s, const struct packet *p, u64 now)
{
	struct flow *flow = flows.lookup((void *)&p->tuple);
	u32 slot, reason, result;
	u64 identity;
	int refusal;

	if (!flow)
		return UNKNOWN_FLOW;
	identity = identity_of(&p->tuple);
	/* The flow may end by this packet. */
	slot = flow->slot;
	reason = flow->reason;
	result = pass_packet(skb, flow, p, ORIGINAL, identity, now);
	if (result & GONE)
		return UNKNOWN_FLOW;
	if (result & RETURNS) {
		refusal = return_flow(flow, &p->tuple, identity, s, now);
		if (refusal) {
			refuse(skb, s, refusal);
			return KNOWN_FLOW;
		}
	}
	set_mark(skb, s, slot + 1);
	skb->tc_index = TAG_MARKED;
	count(reason, 0);
	if (result & DELETED)
		return KNOWN_FLOW;
	if (flow->replied)
		track_in_flight(skb, flow, p);
	else
		skb->tc_index = TAG_FIRST_PACKET;
	return KNOWN_FLOW;
}

int from_client(struct __sk_buff *skb)
{
	struct settings *s = get_settings();
	struct scratch *w = get_scratch(SCRATCH_PACKET);
	struct packet *p;
	struct fast_packet g;
	int reason;

	reason = try_fast_path(skb, ORIGINAL, &g);
	if (reason)
		return reason;
	if (!s || !w)
		return block(REASON_NOT_READY);
	p = &w->packet;
	__builtin_memset(p, 0, sizeof(*p));
	/* Whatever mark or tag came along, ours start empty. */
	set_mark(skb, s, 0);
	skb->tc_index = 0;
	reason = parse(skb, p);
	if (reason == REASON_MALFORMED || reason == REASON_TINY_FRAGMENT)
		return block(reason);
	if (reason) {
		count(reason, 0);
		return PASS;
	}
	if (!s->ready)
		return pass_local(skb, p, REASON_NOT_READY);
	w->now = bpf_ktime_get_coarse_ns();
	if (continue_flow(skb, s, p, w->now) != UNKNOWN_FLOW)
		return PASS;
	skb->cb[0] = SCRATCH_PACKET;
	stages.call(skb, DECIDE);
	return block(REASON_NOT_READY);
}

static __always_inline int store_verdict(struct verdict *v)
{
	int zero = 0;

	return explained.update(&zero, v);
}

/*
 * explain: what from_client would do with this packet, decided by the same program, with nothing entered,
 * counted or sent. The verdict is written into the map `explained`. cb[0] has its overrides.
 */
int explain(struct __sk_buff *skb)
{
	struct settings *s = get_settings();
	struct scratch *w = get_scratch(SCRATCH_EXPLAIN);
	struct verdict v = {};

	v.reason = REASON_NOT_READY;
	if (!s || !s->ready || !w)
		return store_verdict(&v);
	__builtin_memset(&w->packet, 0, sizeof(w->packet));
	v.reason = parse(skb, &w->packet);
	if (v.reason)
		return store_verdict(&v);
	skb->cb[0] = SCRATCH_EXPLAIN | skb->cb[0] << OVERRIDE_SHIFT;
	stages.call(skb, DECIDE);
	v.reason = REASON_NOT_READY;
	return store_verdict(&v);
}

static __always_inline int answer(struct __sk_buff *skb, const struct settings *s, const struct packet *p,
				  struct verdict *v)
{
	v->limit = s->limit;
	if (v->reason < REASON_LIMIT && (p->tuple.protocol == IPPROTO_TCP || p->tuple.protocol == IPPROTO_UDP)) {
		int refusal = refusal_of_client(&p->tuple, s);

		v->active = active_at(&p->tuple, v->egress_address);
		if (v->active >= v->limit)
			v->reason = REASON_LIMIT;
		if (refusal)
			v->reason = refusal;
	}
	return store_verdict(v);
}

/* Admits and creates a new flow; where a table is full, room is made once. Else the reason why it is not created. */
enum { CREATED, CREATED_BEFORE = -1 };
static __always_inline int admit_flow(struct __sk_buff *skb, const struct settings *s, const struct packet *p,
				      struct verdict *v, enum direction direction, u64 now)
{
	int try, reason = REASON_FLOWS_FULL;
	struct flow *flow;

#pragma nounroll
	for (try = 0; try < 2; try++) {
		long failed;

		if (try && !make_room(reason))
			return reason;
		reason = admit(&p->tuple, v->egress_address, v->slot, s, now);
		if (reason == REASON_ORIGINS_FULL)
			continue;
		if (reason)
			return reason;
		failed = create_flow(skb, p, v, direction, now);
		if (!failed)
			return CREATED;
		release(&p->tuple, v->egress_address, 1, true);
		if (failed != -E2BIG)
			break;
		reason = REASON_FLOWS_FULL;
	}
	if (reason)
		return reason;
	/* Another processor has created it since it was looked for: the verdict is that one's. */
	flow = flows.lookup((void *)&p->tuple);
	if (!flow || flow->deleting)
		return REASON_ENDING;
	v->reason = flow->reason;
	v->slot = flow->slot;
	return CREATED_BEFORE;
}

/* TCP and UDP are flows; the rest is only given its address, packet by packet. */
static __always_inline int open_flow(struct __sk_buff *skb, const struct settings *s, const struct packet *p,
				     struct verdict *v, u64 now)
{
	int created = CREATED_BEFORE;

	if (v->policy)
		count_policy_hit(v->policy, now);
	/* A flow's address may be there while the shared one, which other ICMP leaves from, is not. */
	if (is_icmp(p) && v->reason < REASON_MALFORMED) {
		struct flow *about = flow_of_error(skb, p);

		if (about) {
			v->reason = REASON_ICMP_ERROR;
			v->slot = about->slot;
		}
	}
	if (v->reason >= REASON_MALFORMED)
		return block(v->reason);
	if (v->reason >= REASON_LIMIT)
		return refuse(skb, s, v->reason);
	skb->tc_index = TAG_MARKED;
	if (p->tuple.protocol == IPPROTO_TCP || p->tuple.protocol == IPPROTO_UDP) {
		created = admit_flow(skb, s, p, v, ORIGINAL, now);
		if (created >= REASON_MALFORMED)
			return block(created);
		if (created > 0)
			return refuse(skb, s, created);
		skb->tc_index = TAG_FIRST_PACKET;
	}
	count(v->reason, created == CREATED);
	set_mark(skb, s, v->slot + 1);
	return PASS;
}

/* A flow that is not known: which egress, and is there room? */
int decide(struct __sk_buff *skb)
{
	u32 question = skb->cb[0] & SCRATCH_EXPLAIN;
	u32 overridden = question ? skb->cb[0] >> OVERRIDE_SHIFT : 0;
	struct scratch *w = get_scratch(question);
	struct settings *s = get_settings();
	struct verdict v = {};
	struct packet *p;
	u32 outside = 0;

	if (!s || !w)
		return block(REASON_NOT_READY);
	p = &w->packet;
	v.reason = route(skb, p, &outside);
	if (!v.reason && !begins(p))
		v.reason = REASON_OUT_OF_STATE;
	if (!v.reason)
		v.reason = check_source(skb, p, outside);
	if (!v.reason)
		classify(s, p, &v, !question, overridden);
	if (question)
		return answer(skb, s, p, &v);
	if (v.reason >= REASON_LOCAL) {
		count(v.reason, 0);
		return PASS;
	}
	return open_flow(skb, s, p, &v, w->now);
}

/*
 * Whether an answer has come to another port than its client's, as nearly all do. What a stranger sends to a client itself
 * has not; the table stops that, too, while it knows the interface's name.
 */
static __always_inline bool is_translated(const struct __sk_buff *skb, const struct packet *p)
{
	return skb->tc_index && skb->tc_index != p->tuple.client_port;
}

/*
 * To a client goes what belongs to no known flow. A mark of ours on it, which from_origin has cleared, is the table's
 * (chain `expected`): conntrack takes it for the opening of a connection that a helper expects.
 */
static __always_inline int pass_unknown(struct __sk_buff *skb, const struct packet *p)
{
	struct settings *s = get_settings();
	struct scratch *w = get_scratch(SCRATCH_PACKET);
	u32 ifindex = skb->ingress_ifindex;
	struct interface *in = interfaces.lookup(&ifindex);

	if (!s || !w || !in || in->role != OUTSIDE)
		return PASS;
	if (!our_mark(skb, s))
		return is_translated(skb, p) ? PASS : block(REASON_INBOUND);
	w->packet = *p;
	w->now = bpf_ktime_get_coarse_ns();
	stages.call(skb, EXPECT);
	return block(REASON_NOT_READY);
}

/* Such a connection is a flow of the egress IP that the mark names, and counted as one. Without room it is not opened. */
int expect(struct __sk_buff *skb)
{
	struct settings *s = get_settings();
	struct scratch *w = get_scratch(SCRATCH_PACKET);
	struct verdict v = {};
	struct packet *p;
	struct flow *flow;
	int created;

	if (!s || !w)
		return block(REASON_NOT_READY);
	p = &w->packet;
	v.slot = slot_of_mark(skb, s);
	v.reason = v.slot ? REASON_EXPECTED : REASON_EXPECTED_SHARED;
	set_mark(skb, s, 0);
	if (!egress_address_of(v.slot, p->family, p->tuple.client, v.egress_address, 0))
		return block(REASON_UNAVAILABLE);
	created = admit_flow(skb, s, p, &v, REPLY, w->now);
	if (created > 0)
		return block(created);
	count(v.reason, created == CREATED);
	flow = flows.lookup((void *)&p->tuple);
	if (flow)
		pass_packet(skb, flow, p, REPLY, identity_of(&p->tuple), w->now);
	return PASS;
}

int to_client(struct __sk_buff *skb)
{
	u32 ifindex = skb->ingress_ifindex;
	struct packet p = {};
	struct flow_key reply;
	struct interface *in;
	struct flow *flow;

	if (skb->tc_index == TAG_REDIRECTED) {
		skb->tc_index = 0;
		return PASS;
	}
	if (parse(skb, &p) || (p.tuple.protocol != IPPROTO_TCP && p.tuple.protocol != IPPROTO_UDP))
		return PASS;
	reply = p.tuple;
	copy_address(p.tuple.client, reply.origin);
	copy_address(p.tuple.origin, reply.client);
	p.tuple.client_port = reply.origin_port;
	p.tuple.origin_port = reply.client_port;
	flow = flows.lookup(&p.tuple);
	if (!flow)
		return pass_unknown(skb, &p);
	/* An origin's word comes from outside: a client could say it to itself, and end its count. */
	in = interfaces.lookup(&ifindex);
	if (in && in->role == INSIDE)
		return PASS;
	count(REASON_REPLY, 0);
	if (!(pass_packet(skb, flow, &p, REPLY, identity_of(&p.tuple), bpf_ktime_get_coarse_ns()) & (GONE | DELETED)))
		create_reply_entry(skb, &p, flow);
	return PASS;
}

/* Whether the packet's source is the address that its mark names. */
static __always_inline bool has_egress_address(struct __sk_buff *skb, const struct settings *s)
{
	struct packet p = {};
	struct egress *egress;
	struct egress_address *expected;
	u32 slot, wrong = 0;
	int i;

	if (skb->protocol == be16(ETH_P_IP)) {
		struct iphdr ip;

		if (load(skb, 0, &ip, sizeof(ip)) < 0)
			return false;
		p.family = IPV4;
		map_ipv4(p.tuple.client, ip.saddr);
	} else if (skb->protocol == be16(ETH_P_IPV6)) {
		struct ipv6hdr ip;

		if (load(skb, 0, &ip, sizeof(ip)) < 0)
			return false;
		p.family = IPV6;
		copy_address(p.tuple.client, ip.saddr.in6_u.u6_addr32);
	} else {
		return false;
	}
	slot = slot_of_mark(skb, s);
	egress = egresses.lookup(&slot);
	if (!egress)
		return false;
	expected = &egress->address[p.family & 1];
#pragma unroll
	for (i = 0; i < 4; i++)
		wrong |= (p.tuple.client[i] & expected->mask[i]) ^ expected->prefix[i];
	return !wrong && expected->local;
}

/* A frame of an interface on top of this one, where it has been looked at: of a VLAN, a PPPoE session, MACsec or, by its
 * MAC address, a macvlan. */
static __always_inline bool is_carried(struct __sk_buff *skb)
{
	u32 ifindex = skb->ifindex;
	struct interface *out = interfaces.lookup(&ifindex);
	struct carried_key key = { .ifindex = ifindex };

	if (!out || !out->ethernet)
		return false;
	switch (skb->protocol) {
	case be16(ETH_P_8021Q):
	case be16(ETH_P_8021AD):
	case be16(ETH_P_PPP_SES):
	case be16(ETH_P_MACSEC):
		return true;
	}
	if (is_tagged(skb))
		return true;
	return bpf_skb_load_bytes(skb, ETH_ALEN /* the source is second */, key.mac, sizeof(key.mac)) == 0 &&
	       carried.lookup(&key);
}

/*
 * from_client has let it pass, and it came by an inside interface then. The stack may take it for another one's since: for a
 * VRF's, or a bridge's whose port that interface has become. Others' marks come without a tag.
 */
static __always_inline bool is_marked_by_us(const struct __sk_buff *skb, const struct settings *s)
{
	return skb->tc_index && our_mark(skb, s);
}

int to_origin(struct __sk_buff *skb)
{
	u32 ifindex = skb->ingress_ifindex;
	struct settings *s;
	struct interface *in;

	/* The packet from which its entry was created has passed here. */
	if (skb->tc_index == TAG_REDIRECTED) {
		skb->tc_index = 0;
		return PASS;
	}
	s = get_settings();
	if (s && has_egress_address(skb, s)) {
		u32 family = skb->protocol == be16(ETH_P_IP) ? IPV4 : IPV6;

		if (skb->tc_index == TAG_FIRST_PACKET)
			claim_port(skb, family, slot_of_mark(skb, s));
		else if (skb->tc_index && skb->tc_index != TAG_MARKED)
			create_original_entry(skb, family);
		/* A tunnel's outer packet has it else. */
		skb->tc_index = 0;
		return PASS;
	}
	/* The gateway's own packets came in by no interface, and others' are none of ours. */
	in = interfaces.lookup(&ifindex);
	if (!(in && in->role == INSIDE) && !(s && ifindex && is_marked_by_us(skb, s)))
		return PASS;
	return is_carried(skb) ? PASS : block(REASON_LEAK);
}

/* The table knows outside interfaces by name: what arrives by one that is unfit it would let through. */
static __always_inline int pass_by_unfit(struct __sk_buff *skb, const struct interface *interface, const struct packet *p,
					 int reason)
{
	if (reason == REASON_NOT_IP)
		return PASS;
	if (reason == REASON_MALFORMED || reason == REASON_TINY_FRAGMENT)
		return block(reason);
	return pass_local(skb, p, reason_unfit(interface));
}

int from_origin(struct __sk_buff *skb)
{
	u32 ifindex = skb->ifindex;
	struct scratch *w = get_scratch(SCRATCH_PACKET);
	struct interface *interface;
	struct settings *s;
	struct fast_packet g;
	int result;

	/* Whatever tag came along. The verifier does not see that a tag means a parsed packet. */
	skb->tc_index = 0;
	g.tos = 0;
	g.hop_limit = 0;
	result = try_fast_path(skb, REPLY, &g);
	if (result)
		return result;
	s = get_settings();
	/* From here on a mark of ours says "classified by from_client". */
	if (s)
		set_mark(skb, s, 0);
	if (skb->tc_index)
		note_arrival(skb, &g);
	interface = interfaces.lookup(&ifindex);
	if (!interface)
		return PASS;
	if (!w)
		return block(REASON_NOT_READY);
	if (interface->unfit || !skb->tc_index) {
		__builtin_memset(&w->packet, 0, sizeof(w->packet));
		result = parse(skb, &w->packet);
		if (interface->unfit)
			return pass_by_unfit(skb, interface, &w->packet, result);
		/* For to_client: of what the fast path has no use for, too. */
		if (!result && w->packet.tuple.origin_port != TAG_REDIRECTED)
			skb->tc_index = w->packet.tuple.origin_port;
	}
	if (!answer_solicitation(skb, interface))
		return PASS;
	count(REASON_NEIGHBOUR, 0);
	return bpf_redirect(skb->ifindex, 0);
}
