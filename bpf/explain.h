/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The program explain, which user space runs with BPF_PROG_TEST_RUN (`enforcer explain`). It stores the verdict on a
 * packet from a client in the map `explained`. The program decide determines it as for from_client, but creates, counts
 * and sends nothing. On entry skb->cb[0] contains the overrides (enum override).
 */

static __always_inline int store_verdict(struct verdict *v)
{
	int zero = 0;

	return explained.update(&zero, v);
}

/* Called by decide: adds the limits that apply to the flow to the verdict, and stores it. */
static __always_inline int answer_question(const struct settings *s, const struct packet *p, struct verdict *v)
{
	v->limit = s->limit;
	if (is_egress(v->reason) && (p->tuple.protocol == IPPROTO_TCP || p->tuple.protocol == IPPROTO_UDP)) {
		int refusal = refusal_of_client(&p->tuple, s);

		v->active = active_at(&p->tuple, v->egress_address);
		if (v->active >= v->limit)
			v->reason = REASON_LIMIT;
		if (refusal)
			v->reason = refusal;
	}
	return store_verdict(v);
}

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
