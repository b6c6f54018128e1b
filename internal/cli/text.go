package cli

import (
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
)

func sortedKeys[V any](m map[string]V) []string {
	return slices.Sorted(maps.Keys(m))
}

// parseBytes reads 512, 64Ki, 8Gi.
func parseBytes(s string) (int64, error) {
	unit := int64(1)
	for i, u := range []string{"Ki", "Mi", "Gi", "Ti"} {
		if n, ok := strings.CutSuffix(s, u); ok {
			s, unit = n, 1<<(10*(i+1))
			break
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/unit {
		return 0, errors.New("want a number of bytes such as 512Mi or 8Gi")
	}
	return n * unit, nil
}
