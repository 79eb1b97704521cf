package xds

import (
	"fmt"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/tenant"
)

// TestRenderOfWhatHasChanged holds a rendering that reuses the one before to the
// one that begins from nothing.
func TestRenderOfWhatHasChanged(t *testing.T) {
	config := Config{
		Region: "use1", Models: []string{"a", "b", "c"},
		TenantAddress: netip.MustParseAddrPort("127.0.0.1:443"), HealthAddress: netip.MustParseAddrPort("127.0.0.1:8080"),
	}.withDefaults()
	regions := []fleet.Region{"use1", "use2"}
	admitted, err := newAdmission(config, "use1", regions, &tenant.Set{})
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		var before rendered
		for range rapid.IntRange(1, 5).Draw(t, "publications") {
			var usable []dialableInstance
			for i := range rapid.IntRange(0, 4).Draw(t, "instances") {
				usable = append(usable, dialableInstance{
					Instance: &fleet.Instance{
						ID: fmt.Sprint(i), Region: rapid.SampledFrom([]fleet.Region{"use1", "use2"}).Draw(t, "region"),
						Models: rapid.SliceOfNDistinct(rapid.SampledFrom(config.Models), 0, 2, rapid.ID).Draw(t, "models"),
					},
					address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 8080),
					weight:  rapid.SampledFrom([]uint32{10, 20}).Draw(t, "weight"),
				})
			}
			p := newPlan(config, "use1", regions, nil, usable, admitted, certificate{chain: []byte("-"), key: []byte("-")})
			again, err := render(p, before)
			if err != nil {
				t.Fatal(err)
			}
			anew, err := render(p, rendered{})
			if err != nil {
				t.Fatal(err)
			}
			if !again.set.equal(anew.set) {
				t.Fatalf("reused: %v\nanew: %v", again.set, anew.set)
			}
			before = again
		}
	})
}
