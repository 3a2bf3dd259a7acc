/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Programs that user space runs by BPF_PROG_TEST_RUN on what a sweep has found: user space only points at elements, these
 * look again under the elements' locks. The packet holds keys, or keys and differences, behind an Ethernet header's
 * room; its mark says what is to be done.
 */

enum {
	KEYS_AT = 14,            /* BPF_PROG_TEST_RUN wants an Ethernet header first */
	REAP_BATCH = 16,
	REAP_UNKNOWN = 1,        /* mark: conntrack doesn't know these, delete them if unanswered or still idle */
	REAP_SETTLED = 1000000000,   /* ns: what has been silent for so long has nothing under way to conntrack */
	REAP_EVERY = 2,          /* mark: their egress IP is gone, delete them */
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
		finish_flow(flow, &key, ended);
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

/* forget: deletes those of the origins named in the packet that have no live flow. */
int forget(struct __sk_buff *skb)
{
	int i, forgotten = 0;

	for (i = 0; i < REAP_BATCH; i++) {
		struct origin_key key;

		if (bpf_skb_load_bytes(skb, KEYS_AT + i * sizeof(key), &key, sizeof(key)) < 0)
			break;
		forgotten += forget_origin(&key);
	}
	return forgotten;
}

/* forget_clients: deletes those of the client prefixes named in the packet for which nothing is counted. */
int forget_clients(struct __sk_buff *skb)
{
	int i, forgotten = 0;

	for (i = 0; i < REAP_BATCH; i++) {
		struct client_key key;

		if (bpf_skb_load_bytes(skb, KEYS_AT + i * sizeof(key), &key, sizeof(key)) < 0)
			break;
		forgotten += forget_client(&key);
	}
	return forgotten;
}

static __always_inline u32 corrected(u32 counter, s32 by)
{
	return by < 0 && counter < (u32)-by ? 0 : counter + by;
}

static __always_inline u32 magnitude(s32 by)
{
	return by < 0 ? -by : by;
}

/* recount: corrects origins' counts by differences that user space has proven (enforcer/datapath/recount.py). */
struct origin_correction {
	struct origin_key key;
	u32 slot;
	s32 by;
};
int recount(struct __sk_buff *skb)
{
	u64 now = bpf_ktime_get_coarse_ns();
	int i;

	for (i = 0; i < REAP_BATCH; i++) {
		struct origin_correction correction;
		struct origin *origin;

		if (bpf_skb_load_bytes(skb, KEYS_AT + i * sizeof(correction), &correction, sizeof(correction)) < 0)
			break;
		origin = correction.by > 0 ? get_origin(&correction.key, correction.slot, now) :
					     origins.lookup(&correction.key);
		if (!origin)
			continue;
		bpf_spin_lock(&origin->lock);
		origin->active = corrected(origin->active, correction.by);
		bpf_spin_unlock(&origin->lock);
		count_event(CORRECTED_ORIGINS, magnitude(correction.by));
	}
	return i;
}

/* recount_clients: the same for client prefixes. */
struct client_correction {
	struct client_key key;
	s32 flows;
	s32 unanswered;
};
int recount_clients(struct __sk_buff *skb)
{
	int i;

	for (i = 0; i < REAP_BATCH; i++) {
		struct client_correction correction;
		struct client_prefix *client;

		if (bpf_skb_load_bytes(skb, KEYS_AT + i * sizeof(correction), &correction, sizeof(correction)) < 0)
			break;
		client = client_prefixes.lookup(&correction.key);
		if (!client)
			continue;
		bpf_spin_lock(&client->lock);
		client->flows = corrected(client->flows, correction.flows);
		client->unanswered = corrected(client->unanswered, correction.unanswered);
		bpf_spin_unlock(&client->lock);
		count_event(CORRECTED_CLIENTS, magnitude(correction.flows) + magnitude(correction.unanswered));
	}
	return i;
}
