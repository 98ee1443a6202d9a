// ICU's data library with nothing in it: a header as <unicode/udata.h> describes it, and a table of contents of no
// entries. What tokenizers need of Unicode (NFC, properties, expressions) is compiled into ICU's code; its data, 31 MB, is
// locales, collation, calendars and conversions.
#include <unicode/udata.h>
#include <unicode/utypes.h>

struct CommonData {
  uint16_t header_bytes;
  uint8_t magic[2];
  UDataInfo info;
  uint8_t padding[8];
  uint32_t entries;
  uint32_t unused;
};

_Static_assert(sizeof(UDataInfo) == 20, "the header has 32 bytes");

U_CAPI const struct CommonData U_EXPORT2 U_ICUDATA_ENTRY_POINT __attribute__((aligned(16))) = {
    32, {0xda, 0x27}, {sizeof(UDataInfo), 0, U_IS_BIG_ENDIAN, U_CHARSET_FAMILY, U_SIZEOF_UCHAR, 0,
                       {'C', 'm', 'n', 'D'}, {1, 0, 0, 0}, {0}}, {0}, 0, 0};
