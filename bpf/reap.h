/* SPDX-License-Identifier: GPL-2.0-only */
/* Programs that user space runs on flows that a sweep has found, as those of sweep.h: reap deletes them, told notes
 * that conntrack knows their state. */

enum {
	REAP_UNKNOWN = 1,          /* mark: conntrack has no entry for these, delete them if unanswered or still idle */
	REAP_SETTLED = 1000000000, /* ns: a flow silent for longer has no packet between us and conntrack */
	REAP_EVERY = 2,            /* mark: their egress IP is gone, delete them */
};

/* Whether what the mark says is true of a flow that is not to be kept. Under its lock. */
static __always_inline bool is_to_be_reaped(const struct flow *flow, u32 mark, u64 timeout, u64 now)
{
	return mark == REAP_EVERY || flow->last_seen + timeout < now ||
	       (mark == REAP_UNKNOWN && (!flow->replied || flow->last_seen + REAP_SETTLED < now));
}

/* reap: deletes those of the flows named in the packet that are idle beyond their timeout, or that the
 * packet's mark condemns. */
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

/* told: conntrack has been told the state that the packet's mark says of these flows; those that still have it need not be
 * told again. */
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
