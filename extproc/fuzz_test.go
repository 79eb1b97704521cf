package extproc_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"

	"github.com/mrgc/mrgc/extproc"
)

// FuzzHeaders compares what the picker makes of any headers with what a plain
// reading by regular expressions makes of them. Headers are given as lines of
// "name: value" in the order in which Envoy would send them.
func FuzzHeaders(f *testing.F) {
	for _, seed := range []headers{
		sealed("1"),
		sealed("1").and("mrgc-size", "64/1048576").and("mrgc-affinity", "k"),
		sealed("1").and("Mrgc-Model", "x"),
		sealed("1").with("mrgc-recipients", kidA+","+kidA),
		sealed("1").with("authorization", "bearer "+token),
		sealed("1").and("authorization", ""),
	} {
		var lines strings.Builder
		for _, h := range seed {
			lines.WriteString(h.GetKey() + ": " + string(h.GetRawValue()) + "\n")
		}
		f.Add(lines.String())
	}
	picker, err := extproc.New(config(usual))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, lines string) {
		var given headers
		for line := range strings.Lines(lines) {
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
			given = given.and(name, value)
		}
		want := wellFormed(given) // first: the picker wipes the token
		stream := memoryStream{messages: []*extprocv3.ProcessingRequest{given.message()}}
		if err := picker.Process(&stream); err != nil {
			t.Fatal(err)
		}
		status := stream.last.GetImmediateResponse().GetStatus().GetCode()
		if got := status != 400 && status != 401; got != want {
			t.Fatalf("admitted: %v (%d), want %v", got, status, want)
		}
	})
}

// bucket is a number of tokens as a size declares it.
const bucket = `(64|128|256|512|1024|2048|4096|8192|16384|32768|65536|131072|262144|524288|1048576)`

func wellFormed(given headers) bool {
	for name, pattern := range map[string]string{
		"content-type":    `(?i)application/mrgc-chunked-req`,
		"authorization":   `(?i:bearer) ` + token,
		"mrgc-model":      `[!-+\--~]{1,256}`,
		"mrgc-tenant":     tenant,
		"mrgc-recipients": `[0-9a-f]{16}(,[0-9a-f]{16})*`,
		"mrgc-request-id": `[0-9a-f]{32}`,
		"mrgc-affinity":   `[!-+\--~]{1,256}`,
		"mrgc-size":       bucket + `/` + bucket,
	} {
		values := given.all(name)
		if len(values) == 0 && (name == "mrgc-affinity" || name == "mrgc-size") {
			continue
		}
		if len(values) != 1 || !regexp.MustCompile(`^(`+pattern+`)$`).MatchString(values[0]) {
			return false
		}
	}
	kids := strings.Split(given.all("mrgc-recipients")[0], ",")
	slices.Sort(kids)
	return len(kids) <= 64 && len(slices.Compact(kids)) == len(kids)
}

// all are the values of a header, however its name is written.
func (h headers) all(name string) []string {
	var values []string
	for _, v := range h {
		if strings.EqualFold(v.GetKey(), name) {
			values = append(values, string(v.GetRawValue()))
		}
	}
	return values
}
