/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Tail calls, and the data that one program passes to the next. The verifier checks a tail-called program once, for all
 * of its callers: from_client and explain call decide, to_client calls expect.
 */

struct scratch {
	struct packet packet;
	u64 now;
};

/* explain has a scratch of its own: a packet may arrive between its programs. */
enum scratch_slot { SCRATCH_PACKET, SCRATCH_EXPLAIN, SCRATCHES };
BPF_PERCPU_ARRAY(scratch, struct scratch, SCRATCHES);

enum stage { DECIDE, EXPECT, STAGES };
/* Not pinned with the other maps: programs loaded earlier keep their own until no program calls them. */
BPF_TABLE_PINNED("prog", u32, u32, stages, STAGES, STAGES_PIN, 0);

/* skb->cb[0] of decide: the scratch's slot in the lowest bit, and above it explain's overrides (enum override). */
enum { OVERRIDE_SHIFT = 1 };

static __always_inline struct scratch *get_scratch(u32 slot)
{
	int index = slot & SCRATCH_EXPLAIN;

	return scratch.lookup(&index);
}
