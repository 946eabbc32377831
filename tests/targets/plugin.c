// SPDX-License-Identifier: GPL-2.0-only
/* A library that is loaded later, and allocates. */
#include <stdlib.h>

#include "target.h"

NAMED void *plugin_malloc(size_t bytes)
{
	void *block = malloc(bytes);

	KEEP_FRAME(block);
	return block;
}
