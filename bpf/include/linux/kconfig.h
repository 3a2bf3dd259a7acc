/* SPDX-License-Identifier: GPL-2.0-only */
/* BCC includes this first, in place of the kernel's build configuration. */
#pragma once
#define CONFIG_BPF_SYSCALL 1

typedef __SIZE_TYPE__ size_t;
typedef __UINTPTR_TYPE__ uintptr_t;
typedef __PTRDIFF_TYPE__ ssize_t;

#include <linux/types.h>
