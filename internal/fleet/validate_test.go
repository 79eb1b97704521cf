package fleet_test

import (
	"fmt"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/fleet"
)

func valid() fleet.Instance {
	return fleet.Instance{
		ID: "i-0abc", Region: "use1", Zone: "use1-az1", Address: "10.0.0.7:8080",
		Models: []string{"org/Model_1.5:8b", "other"}, KeyIDs: []string{"00112233445566aa", "ffeeddccbbaa9988"},
		Load: fleet.Load{Running: 1, Queued: 2, Slots: 3, Latency: 4},
	}
}

var _ = Describe("Validation of an instance", func() {
	DescribeTable("accepts",
		func(change func(*fleet.Instance)) {
			in := valid()
			change(&in)
			Expect(in.Validate()).To(Succeed())
		},
		Entry("the usual", func(*fleet.Instance) {}),
		Entry("no zone, model, key or load yet", func(in *fleet.Instance) {
			in.Zone, in.Models, in.KeyIDs, in.Load = "", nil, nil, fleet.Load{}
		}),
		Entry("the longest names", func(in *fleet.Instance) {
			in.ID, in.Models = strings.Repeat("i", 63), []string{strings.Repeat("m", 128)}
		}),
		Entry("a version", func(in *fleet.Instance) { in.Versions = map[string]string{"other": "2026-11.2+q4_K"} }),
		Entry("IPv6", func(in *fleet.Instance) { in.Address = "[2001:db8::1]:8080" }),
		Entry("any reason", func(in *fleet.Instance) { in.Health.Reason = "engine:\n" + strings.Repeat("x", 1<<16) }),
	)

	DescribeTable("refuses",
		func(change func(*fleet.Instance), message string) {
			in := valid()
			change(&in)
			Expect(in.Validate()).To(MatchError(message))
		},
		Entry("no ID", func(in *fleet.Instance) { in.ID = "" },
			`instance id "": want 1 to 63 of a-z, 0-9 and '-', no '-' at either end`),
		Entry("an ID that is too long", func(in *fleet.Instance) { in.ID = strings.Repeat("i", 64) },
			`instance id "`+strings.Repeat("i", 64)+`": want 1 to 63 of a-z, 0-9 and '-', no '-' at either end`),
		Entry("an ID that ends with a line", func(in *fleet.Instance) { in.ID = "a\n" },
			`instance id "a\n": want 1 to 63 of a-z, 0-9 and '-', no '-' at either end`),
		Entry("a region in capitals", func(in *fleet.Instance) { in.Region = "USE1" },
			`instance i-0abc: region "USE1": want 1 to 63 of a-z, 0-9 and '-', no '-' at either end`),
		Entry("a zone with a blank", func(in *fleet.Instance) { in.Zone = "use1 az1" },
			`instance i-0abc: zone "use1 az1": want 1 to 63 of a-z, 0-9 and '-', no '-' at either end, or nothing`),
		Entry("a host name", func(in *fleet.Instance) { in.Address = "localhost:80" },
			`instance i-0abc: address "localhost:80": want IP:port`),
		Entry("port 0", func(in *fleet.Instance) { in.Address = "10.0.0.7:0" },
			`instance i-0abc: address "10.0.0.7:0": want IP:port`),
		Entry("all interfaces", func(in *fleet.Instance) { in.Address = "0.0.0.0:80" },
			`instance i-0abc: address "0.0.0.0:80": nobody can dial the unspecified address`),
		Entry("another way to write an address", func(in *fleet.Instance) { in.Address = "[2001:DB8::1]:80" },
			`instance i-0abc: address "[2001:DB8::1]:80": not in its canonical form, without a zone`),
		Entry("IPv4 in IPv6", func(in *fleet.Instance) { in.Address = "[::ffff:10.0.0.7]:80" },
			`instance i-0abc: address "[::ffff:10.0.0.7]:80": not in its canonical form, without a zone`),
		Entry("an interface's address", func(in *fleet.Instance) { in.Address = "[fe80::1%eth0]:80" },
			`instance i-0abc: address "[fe80::1%eth0]:80": not in its canonical form, without a zone`),
		Entry("an empty model", func(in *fleet.Instance) { in.Models[1] = "" },
			`instance i-0abc: models[1]: model "": want 1 to 128 of A-Z, a-z, 0-9 and ._/:-`),
		Entry("a model twice", func(in *fleet.Instance) { in.Models[1] = in.Models[0] },
			`instance i-0abc: models[1]: "org/Model_1.5:8b" is listed twice`),
		Entry("a version of a model that is not served", func(in *fleet.Instance) { in.Versions = map[string]string{"third": "1"} },
			`instance i-0abc: versions: "third" is none of its models`),
		Entry("an empty version", func(in *fleet.Instance) { in.Versions = map[string]string{"other": ""} },
			`instance i-0abc: versions of other: version "": want 1 to 128 of A-Z, a-z, 0-9 and ._+-`),
		Entry("a version with a line's end", func(in *fleet.Instance) { in.Versions = map[string]string{"other": "1\n"} },
			`instance i-0abc: versions of other: version "1\n": want 1 to 128 of A-Z, a-z, 0-9 and ._+-`),
		Entry("a key id in capitals", func(in *fleet.Instance) { in.KeyIDs[0] = "00112233445566AA" },
			`instance i-0abc: key ids[0]: "00112233445566AA": want 16 lower-case hex digits`),
		Entry("a short key id", func(in *fleet.Instance) { in.KeyIDs[0] = "00112233445566a" },
			`instance i-0abc: key ids[0]: "00112233445566a": want 16 lower-case hex digits`),
		Entry("a key id twice", func(in *fleet.Instance) { in.KeyIDs[1] = in.KeyIDs[0] },
			`instance i-0abc: key ids[1]: 00112233445566aa is listed twice`),
		Entry("a load", func(in *fleet.Instance) { in.Load.Slots = -1 }, `instance i-0abc: load: slots is negative`),
	)
})

var _ = Describe("Validation of a heartbeat", func() {
	DescribeTable("refuses",
		func(change func(*fleet.Heartbeat), message string) {
			hb := fleet.Heartbeat{ID: "a"}
			Expect(hb.Validate()).To(Succeed())
			change(&hb)
			Expect(hb.Validate()).To(MatchError(message))
		},
		Entry("an ID", func(hb *fleet.Heartbeat) { hb.ID = "-" },
			`instance id "-": want 1 to 63 of a-z, 0-9 and '-', no '-' at either end`),
		Entry("running", func(hb *fleet.Heartbeat) { hb.Load.Running = -1 }, "instance a: load: running is negative"),
		Entry("queued", func(hb *fleet.Heartbeat) { hb.Load.Queued = -1 }, "instance a: load: queued is negative"),
		Entry("slots", func(hb *fleet.Heartbeat) { hb.Load.Slots = -1 }, "instance a: load: slots is negative"),
		Entry("latency", func(hb *fleet.Heartbeat) { hb.Load.Latency = -1 }, "instance a: load: latency is negative"),
		Entry("usage", func(hb *fleet.Heartbeat) { hb.Usage = map[string]fleet.Usage{"a": {}, "m": {Late: -1}} },
			"instance a: usage of m: late is negative"),
		Entry("usage of what is no model", func(hb *fleet.Heartbeat) { hb.Usage = map[string]fleet.Usage{"m\n": {}} },
			`instance a: usage: model "m\n": want 1 to 128 of A-Z, a-z, 0-9 and ._/:-`),
		Entry("usage of too much", func(hb *fleet.Heartbeat) {
			hb.Usage = map[string]fleet.Usage{}
			for i := range 65 {
				hb.Usage[fmt.Sprint("m", i)] = fleet.Usage{}
			}
		}, "instance a: usage of 65 models, want at most 64"),
	)
})
