/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Eviction from a full table. Origins without a live flow are evicted first; then flows that are unanswered or over,
 * the oldest first. A live, answered flow is never evicted.
 *
 * A flow enters the queue when it is created, leaves it when eviction finds it alive and answered, and enters it again
 * when it is over.
 */

enum {
	TRIES = 16,        /* queue elements examined for a new flow */
	KEPT_AT_ONCE = 64, /* flows that a run of keep_evictable examines */
};

/* Under the flow's lock. Eviction does not remove fast-path entries, so a flow that has some is not evictable; a
 * flow that is over soon has none. A DNS query is over with its answer, and any later packet gets the same verdict. */
static __always_inline bool is_evictable(const struct flow *flow)
{
	bool over = is_closed(flow->state) || flow->reason == REASON_DNS;

	return (!is_answered(flow) || over) && !flow->egress_port;
}

/* Deletes a flow if it is evictable. True: the flow is deleted. `key` receives the key of its origin. */
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

/* True: the table that `reason` names as full has room for one more element. */
static __always_inline bool make_room(int reason)
{
	bool for_origin = reason == REASON_ORIGINS_FULL;

	return (for_origin && forget_unused_origin()) || make_room_for_flow(for_origin);
}

/* keep_evictable: pops flows from the head of the queue and pushes those that are still evictable to its end, in the
 * same order. The first run of a pass (mark 1) pushes a key without a protocol, at which the last run stops. After
 * the pass the queue holds evictable flows only, and a new flow finds room at once. Returns how many flows it
 * popped; fewer than KEPT_AT_ONCE means that the pass is complete. */
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
