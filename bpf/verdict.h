/* SPDX-License-Identifier: GPL-2.0-only */
/* Reasons by the class of their verdict (reasons.h): each class has a range of numbers, which the compiler checks. */

enum {
	FIRST_REFUSED = 20,
	FIRST_BLOCKED = 30,
	FIRST_UNTOUCHED = 40,
	FIRST_OF_NFTABLES = 70, /* counted by the nftables table */
};

#define IS_dedicated(number) ((number) < FIRST_REFUSED)
#define IS_shared(number) ((number) < FIRST_REFUSED)
#define IS_refused(number) ((number) >= FIRST_REFUSED && (number) < FIRST_BLOCKED)
#define IS_blocked(number) ((number) >= FIRST_BLOCKED && (number) < FIRST_UNTOUCHED)
#define IS_untouched(number) ((number) >= FIRST_UNTOUCHED && (number) < FIRST_OF_NFTABLES)

/* Translated onto a dedicated or a shared address. */
static __always_inline bool is_egress(u32 reason)
{
	return IS_dedicated(reason);
}

static __always_inline bool is_refused(u32 reason)
{
	return IS_refused(reason);
}

static __always_inline bool is_blocked(u32 reason)
{
	return IS_blocked(reason);
}

static __always_inline bool is_untouched(u32 reason)
{
	return IS_untouched(reason);
}

#define REASON(number, name, verdict, description) \
	_Static_assert((number) >= FIRST_OF_NFTABLES || IS_##verdict(number), #name " is outside its class's range");
#include "reasons.h"
#undef REASON
