package awsclient

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// Address is something at AWS, as flags name it.
type Address struct {
	Name string // what it is called there, such as a table; may be empty
	Settings
	Others map[string]string // settings that the caller of ParseAddress allowed
}

// ParseAddress reads NAME[?KEY=VALUE&…]. Keys are region, endpoint, and those that
// the caller allows besides.
func ParseAddress(text string, allowed ...string) (Address, error) {
	name, query, _ := strings.Cut(text, "?")
	values, err := url.ParseQuery(query)
	if err != nil {
		return Address{}, fmt.Errorf("after the question mark: %w", err)
	}
	allowed = append([]string{"region", "endpoint"}, allowed...)
	others := map[string]string{}
	for key, list := range values {
		if !slices.Contains(allowed, key) {
			return Address{}, fmt.Errorf("unknown setting %q: want %s", key, strings.Join(allowed, " or "))
		}
		if len(list) != 1 || list[0] == "" {
			return Address{}, fmt.Errorf("%s: want one value", key)
		}
		others[key] = list[0]
	}
	return Address{
		Name: name, Settings: Settings{Region: others["region"], Endpoint: others["endpoint"]}, Others: others,
	}, nil
}
