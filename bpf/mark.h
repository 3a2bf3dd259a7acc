/* SPDX-License-Identifier: GPL-2.0-only */
/* The settings, and the packet mark that they describe (ARCHITECTURE.md, Mark). */

enum {
	MARK_REFUSED = 0xffffffff,
};

static __always_inline struct settings *get_settings(void)
{
	int zero = 0;

	return settings.lookup(&zero);
}

/* `value`: 0 for no mark, slot + 1 for a slot, all ones for "refused". */
static __always_inline void set_mark(struct __sk_buff *skb, const struct settings *s, u32 value)
{
	skb->mark = (skb->mark & ~s->mark_mask) | ((value << s->mark_shift) & s->mark_mask);
}

static __always_inline u32 our_mark(const struct __sk_buff *skb, const struct settings *s)
{
	return skb->mark & s->mark_mask;
}

static __always_inline u32 slot_of_mark(const struct __sk_buff *skb, const struct settings *s)
{
	return (our_mark(skb, s) >> s->mark_shift) - 1;
}
