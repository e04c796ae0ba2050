// SPDX-License-Identifier: Apache-2.0
/* Another file of the program that test.c is. */
#define _DEFAULT_SOURCE
#include "sysgenid_watch.h"

#ifdef __cplusplus
extern "C"
#endif
uint32_t other_generation(void);

uint32_t other_generation(void)
{
	return sysgenid_generation();
}
