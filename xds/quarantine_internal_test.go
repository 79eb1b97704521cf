package xds

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// FuzzReason holds what is shown of a NACK to what can be shown.
func FuzzReason(f *testing.F) {
	f.Add("Error adding/updating cluster(s) a: no")
	f.Add("\x1b[31m\n\xff -----BEGIN PRIVATE KEY-----")
	f.Add(strings.Repeat("ü", maxReason))
	f.Fuzz(func(t *testing.T, message string) {
		got := reason(message)
		if !utf8.ValidString(got) || strings.ContainsFunc(got, unicode.IsControl) || strings.Contains(got, "-----BEGIN") || len(got) > maxReason+len("…") {
			t.Fatalf("%q", got)
		}
	})
}
