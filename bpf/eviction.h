/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Room in a table that is full. Of the origins those go first that have no live flow. Of the flows those go that no
 * origin has answered and those that are over, the oldest before others; what is alive and answered never goes.
 *
 * A flow stands in the queue from its creation until it is found there alive and answered, and again when it is over.
 */

enum {
	TRIES = 16,        /* elements looked at for a new flow */
	KEPT_AT_ONCE = 64, /* flows that a run of keep_evictable looks at */
};

/* Under the flow's lock. Of a flow with fast-path entries these would have to be removed; a flow that is over soon has none. A question of DNS is
 * over with its answer, and whatever comes after is decided alike. */
static __always_inline bool is_evictable(const struct flow *flow)
{
	bool over = is_closed(flow->state) || flow->reason == REASON_DNS;

	return (!is_answered(flow) || over) && !flow->egress_port;
}

/* Deletes a flow that may go; true: it is gone. `key` becomes its origin's. */
static __always_inline bool evict_flow(const struct flow_key *tuple, struct origin_key *key)
{
	struct flow *flow = flows.lookup((void *)tuple);
	u32 ended = 0;

	if (!flow)
		return false;
	origin_key_of(key, tuple, flow->egress_address);
	bpf_spin_lock(&flow->lock);
	if (is_current(flow, identity_of(tuple)) && is_evictable(flow))
		ended = begin_deletion(flow);
	bpf_spin_unlock(&flow->lock);
	if (ended)
		end_flow(flow, tuple, ended);
	return ended;
}

static __always_inline bool make_room_for_flow(bool and_origin)
{
	struct origin_key origin;
	struct flow_key tuple;
	int i;

#pragma nounroll
	for (i = 0; i < TRIES; i++) {
		if (oldest_flows.pop(&tuple))
			return false;
		if (!evict_flow(&tuple, &origin))
			continue;
		count_event(EVICTED_FLOWS, 1);
		if (!and_origin || forget_origin(&origin))
			return true;
	}
	return false;
}

static __always_inline bool forget_unused_origin(void)
{
	struct origin_key key;
	int i;

#pragma nounroll
	for (i = 0; i < TRIES; i++) {
		if (unused_origins.pop(&key))
			return false;
		if (forget_origin(&key))
			return true;
	}
	return false;
}

/* True: there is room for one more in the table that `reason` says is full. */
static __always_inline bool make_room(int reason)
{
	bool for_origin = reason == REASON_ORIGINS_FULL;

	return (for_origin && forget_unused_origin()) || make_room_for_flow(for_origin);
}

/* keep_evictable: takes flows from the head of the queue and puts those at its end that may still go; the order stays. A
 * first run (mark 1) puts a key of no protocol at the end, at which the last one stops. Then the queue holds no others, and
 * a new flow finds room at once. Returns how many flows it took; fewer than it might have: that was all. */
int keep_evictable(struct __sk_buff *skb)
{
	struct flow_key tuple = {};
	int i;

	if (skb->mark)
		oldest_flows.push(&tuple, BPF_EXIST);
	for (i = 0; i < KEPT_AT_ONCE; i++) {
		struct flow *flow;

		if (oldest_flows.pop(&tuple) || !tuple.protocol)
			break;
		flow = flows.lookup(&tuple);
		if (flow && is_evictable(flow))
			oldest_flows.push(&tuple, BPF_EXIST);
	}
	return i;
}
