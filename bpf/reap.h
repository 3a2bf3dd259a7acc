/* SPDX-License-Identifier: GPL-2.0-only */
/* Programs that user space runs on flows that a sweep has found, like those of sweep.h: reap deletes the flows, told
 * records that conntrack knows their state. */

enum {
	REAP_UNKNOWN = 1, /* mark: conntrack has no entry for the flows; delete those unanswered or still idle */
	REAP_SETTLED = 1000000000, /* ns: a flow silent for longer has no packet between these programs and conntrack */
	REAP_EVERY = 2,            /* mark: the egress IP of the flows is gone; delete them */
};

/* Under the flow's lock: whether the flow's idle time, or the mark, requires its deletion. */
static __always_inline bool is_to_be_reaped(const struct flow *flow, u32 mark, u64 timeout, u64 now)
{
	return mark == REAP_EVERY || flow->last_seen + timeout < now ||
	       (mark == REAP_UNKNOWN && (!flow->replied || flow->last_seen + REAP_SETTLED < now));
}

/* reap: deletes the flows named in the packet that are idle beyond their timeout or that the packet's mark selects.
 * Returns how many. */
int reap(struct __sk_buff *skb)
{
	u64 now = bpf_ktime_get_ns();
	u32 mark = skb->mark;
	int i, reaped = 0;

	for (i = 0; i < REAP_BATCH; i++) {
		struct flow_key key;
		struct flow *flow;
		u32 ended = 0;
		int state;
		u64 *timeout;

		if (bpf_skb_load_bytes(skb, KEYS_AT + i * sizeof(key), &key, sizeof(key)) < 0)
			break;
		flow = flows.lookup(&key);
		if (!flow)
			continue;
		state = flow->timeout;
		timeout = timeouts.lookup(&state);
		if (!timeout)
			continue;
		bpf_spin_lock(&flow->lock);
		if (is_current(flow, identity_of(&key)) && is_to_be_reaped(flow, mark, *timeout, now))
			ended = begin_deletion(flow);
		bpf_spin_unlock(&flow->lock);
		if (!ended)
			continue;
		remove_entries(flow, &key);
		end_flow(flow, &key, ended);
		reaped++;
	}
	return reaped;
}

/* told: conntrack has received the state in the packet's mark for these flows; clears TELL_CONNTRACK of those that
 * are still in this state. Returns how many. */
int told(struct __sk_buff *skb)
{
	u32 state = skb->mark;
	int i, done = 0;

	for (i = 0; i < REAP_BATCH; i++) {
		struct flow_key key;
		struct flow *flow;

		if (bpf_skb_load_bytes(skb, KEYS_AT + i * sizeof(key), &key, sizeof(key)) < 0)
			break;
		flow = flows.lookup(&key);
		if (!flow)
			continue;
		bpf_spin_lock(&flow->lock);
		if (is_current(flow, identity_of(&key)) && flow->state == state) {
			flow->flags &= ~TELL_CONNTRACK;
			done++;
		}
		bpf_spin_unlock(&flow->lock);
	}
	return done;
}
