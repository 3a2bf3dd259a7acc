/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The kernel side of the enforcer: the programs, in the order in which a packet meets them.
 *
 *   from_client   TC ingress, inside    marks a packet of a known flow
 *   decide        tail call             for any other packet: chooses the egress
 *   open_flow     its second half       admits a new flow and marks its packet
 *   (kernel)      routing; nftables: refuse, forward, translate by the mark
 *   to_origin     TC egress, outside    the leak guard: no source but egress addresses
 *   from_origin   TC ingress, outside   answers neighbour solicitations for on-link ranges
 *   to_client     TC egress, inside     follows a flow's replies
 *   expect        tail call             creates the flow that an origin opens for a conntrack helper
 *
 * User space runs other programs with BPF_PROG_TEST_RUN: explain.h, reap.h, sweep.h, eviction.h.
 */
#include <linux/errno.h>
#include <linux/pkt_cls.h>
#include "maps.h"
#include "metrics.h"
#include "verdict.h"
#include "mark.h"
#include "tags.h"
#include "packet.h"
#include "route.h"
#include "outcome.h"
#include "policy.h"
#include "origin.h"
#include "client.h"
#include "admission.h"
#include "fast_table.h"
#include "fastpath.h"
#include "fast_entries.h"
#include "flow.h"
#include "eviction.h"
#include "new_flow.h"
#include "icmp_error.h"
#include "known_flow.h"
#include "stages.h"
#include "explain.h"
#include "inbound.h"
#include "leak_guard.h"
#include "neighbour.h"
#include "sweep.h"
#include "reap.h"

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
	/* These programs did not set a mark or tag that arrives with the packet. */
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
		return block_forwarded(skb, p, REASON_NOT_READY);
	w->now = bpf_ktime_get_coarse_ns();
	if (continue_flow(skb, s, p, w->now) != UNKNOWN_FLOW)
		return PASS;
	skb->cb[0] = SCRATCH_PACKET;
	stages.call(skb, DECIDE);
	return block(REASON_NOT_READY);
}

static __always_inline int open_flow(struct __sk_buff *skb, const struct settings *s, const struct packet *p,
				     struct verdict *v, u64 now);

/* Chooses the egress, if any, of a packet that belongs to no known flow. Also answers explain. */
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
		return answer_question(s, p, &v);
	if (is_untouched(v.reason)) {
		count(v.reason, 0);
		return PASS;
	}
	return open_flow(skb, s, p, &v, w->now);
}

/* Admits a flow of TCP or UDP. Packets of other protocols are only marked, each separately. */
static __always_inline int open_flow(struct __sk_buff *skb, const struct settings *s, const struct packet *p,
				     struct verdict *v, u64 now)
{
	int created = CREATED_BEFORE;

	if (v->policy)
		count_policy_hit(v->policy, now);
	/* The address of the error's flow may be available while the shared one, from which other ICMP leaves, is
	 * not. */
	if (is_icmp(p) && !is_blocked(v->reason)) {
		struct flow *about = flow_of_error(skb, p);

		if (about) {
			v->reason = REASON_ICMP_ERROR;
			v->slot = about->slot;
		}
	}
	if (is_blocked(v->reason))
		return block(v->reason);
	if (is_refused(v->reason))
		return refuse(skb, s, v->reason);
	skb->tc_index = TAG_MARKED;
	if (p->tuple.protocol == IPPROTO_TCP || p->tuple.protocol == IPPROTO_UDP) {
		created = admit_flow(skb, s, p, v, ORIGINAL, now);
		if (is_blocked(created))
			return block(created);
		if (created > 0)
			return refuse(skb, s, created);
		skb->tc_index = TAG_FIRST_PACKET;
	}
	count(v->reason, created == CREATED);
	set_mark(skb, s, v->slot + 1);
	return PASS;
}

int to_origin(struct __sk_buff *skb)
{
	u32 ifindex = skb->ingress_ifindex;
	struct settings *s;
	struct interface *in;

	/* The packet from which the entry was created has passed this check. */
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
		/* Otherwise a tunnel's outer packet would keep the tag. */
		skb->tc_index = 0;
		return PASS;
	}
	/* The gateway's own packets have no incoming interface; those of other interfaces are not egress. */
	in = interfaces.lookup(&ifindex);
	if (!(in && in->role == INSIDE) && !(s && ifindex && is_marked_by_us(skb, s)))
		return PASS;
	return is_upper_frame(skb) ? PASS : block(REASON_LEAK);
}

int from_origin(struct __sk_buff *skb)
{
	u32 ifindex = skb->ifindex;
	struct scratch *w = get_scratch(SCRATCH_PACKET);
	struct interface *interface;
	struct settings *s;
	struct fast_packet g;
	int result;

	/* Set for the verifier, which does not know that the fast path has parsed a packet with a tag. */
	skb->tc_index = 0;
	g.tos = 0;
	g.hop_limit = 0;
	result = try_fast_path(skb, REPLY, &g);
	if (result)
		return result;
	s = get_settings();
	/* From here on the enforcer's mark means that from_client has classified the packet. */
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
			return block_by_unfit(skb, interface, &w->packet, result);
		/* The tag for to_client, which the fast path sets on the packets that it parses. */
		if (!result && w->packet.tuple.origin_port != TAG_REDIRECTED)
			skb->tc_index = w->packet.tuple.origin_port;
	}
	if (!answer_solicitation(skb, interface))
		return PASS;
	count(REASON_NEIGHBOUR, 0);
	return bpf_redirect(skb->ifindex, 0);
}

int to_client(struct __sk_buff *skb)
{
	u32 ifindex = skb->ingress_ifindex;
	struct packet p = {};
	struct interface *in;
	struct flow *flow;

	if (skb->tc_index == TAG_REDIRECTED) {
		skb->tc_index = 0;
		return PASS;
	}
	if (parse(skb, &p) || (p.tuple.protocol != IPPROTO_TCP && p.tuple.protocol != IPPROTO_UDP))
		return PASS;
	invert_tuple(&p.tuple);
	flow = flows.lookup(&p.tuple);
	if (!flow)
		return pass_unknown(skb, &p);
	/* A client could send itself packets in an origin's name, and so end its own counts. */
	in = interfaces.lookup(&ifindex);
	if (in && in->role == INSIDE)
		return PASS;
	count(REASON_REPLY, 0);
	if (!(pass_packet(skb, flow, &p, REPLY, identity_of(&p.tuple), bpf_ktime_get_coarse_ns()) & (GONE | DELETED)))
		create_reply_entry(skb, &p, flow);
	return PASS;
}

/* Handles a packet to a client that the nftables table has marked: the opening of a connection that a conntrack helper
 * expects, which becomes a flow of the egress IP that the mark names, or an untranslated reply. */
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
	if (our_mark(skb, s) == s->mark_mask)
		return pass_untranslated(skb, s, p);
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
