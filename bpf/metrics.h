/* SPDX-License-Identifier: GPL-2.0-only */
/* The counters of reasons (every outcome of a packet has one), of events in the tables, and of policy hits. */

enum reason {
#define REASON(number, name, verdict, description) REASON_##name = number,
#include "reasons.h"
#undef REASON
};

static __always_inline void count(u32 reason, u32 flows)
{
	int key = reason;
	struct metrics *metrics = reasons.lookup(&key);

	if (metrics) {
		metrics->packets += 1;
		metrics->flows += flows;
	}
}

static __always_inline void count_event(enum event event, u32 times)
{
	int key = event;
	u64 *sum = events.lookup(&key);

	if (sum)
		__sync_fetch_and_add(sum, times);
}

static __always_inline void count_policy_hit(u32 policy, u64 now)
{
	struct hits *hits = policy_hits.lookup(&policy);

	if (hits) {
		__sync_fetch_and_add(&hits->flows, 1);
		hits->last = now;
	}
}
