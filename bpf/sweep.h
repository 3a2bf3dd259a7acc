/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Programs that user space runs by BPF_PROG_TEST_RUN on the elements that a sweep has found: user space only names the
 * elements, the programs check them again under the elements' locks. The packet contains keys, or keys and differences,
 * after the room of an Ethernet header; its mark selects the action.
 */

enum {
	KEYS_AT = 14, /* BPF_PROG_TEST_RUN requires an Ethernet header first */
	REAP_BATCH = 16,
};

/* forget: deletes the origins named in the packet that have no live flow. Returns how many. */
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

/* forget_clients: deletes the client prefixes named in the packet that count nothing. Returns how many. */
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

/* recount: corrects the counts of origins by differences that user space has proven (enforcer/datapath/recount.py). */
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
		origin = correction.by > 0 ? get_origin(&correction.key, correction.slot, now)
					   : origins.lookup(&correction.key);
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
