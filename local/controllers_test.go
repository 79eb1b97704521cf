package local

import (
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/identity"
)

var _ = Describe("A plan of controllers", func() {
	It("has one in each region where there is an accelerator, which looks at all doors and sets its dials", func() {
		p := planFor(withAccelerator)
		granted := &grants{}
		all, err := p.processes(granted.grant)
		Expect(err).NotTo(HaveOccurred())
		byName := children(p)
		for i, name := range []string{"controller-use1", "controller-usw2"} {
			c, r := byName[name], p.regions[i]
			Expect(c.args[1:4]).To(Equal([]string{"controller", "--config", "/state/mrgc.yaml"}))
			Expect(flagOf(c, "--region")).To(Equal(r.name))
			Expect(flagOf(c, "--state")).To(Equal("sqlite:/state/control.db"))
			Expect(flagOf(c, "--store")).To(Equal("sqlite:/state/state.db"))
			Expect(flagOf(c, "--accelerator")).To(Equal(p.acceleratorAddress()))
			Expect(flagOf(c, "--admin-listen")).To(Equal(r.controller))
			Expect(c.args[len(c.args)-4:]).To(Equal([]string{"--door", "use1=" + p.regions[0].tenant, "--door", "usw2=" + p.regions[1].tenant}))
			id := identity.ID{Region: r.name, Role: identity.RoleController}
			Expect(granted.ids).To(ContainElement(id))
			Expect(c.env).To(ConsistOf(append(p.accelerator.credentials.Environment(), "MRGC_IDENTITY_TOKEN="+secret+id.String())))
			for _, child := range all {
				Expect(strings.Join(child.args, " ")).NotTo(Or(
					ContainSubstring(p.accelerator.credentials.AccessKeyID), ContainSubstring(p.accelerator.credentials.SecretAccessKey)), child.name)
			}
			Expect(c.rank).To(BeNumerically(">", byName["envoy-use1"].rank), "doors that are closed at the end are no failure")
			router := byName["router-"+r.name]
			Expect(flagOf(router, "--state")).To(Equal("sqlite:/state/control.db"))
			Expect(flagOf(router, "--envoy-admin")).To(Equal(r.envoyAdmin))
		}
		Expect(p.env("key")).To(ContainElements(
			"export MRGC_STATE='sqlite:/state/control.db'", "export MRGC_CONTROLLER_USE1=http://"+p.regions[0].controller))
	})

	It("has none without", func() {
		p := planFor()
		for name, child := range children(p) {
			Expect(name).NotTo(HavePrefix("controller"))
			if strings.HasPrefix(name, "router") {
				Expect(child.args).NotTo(Or(ContainElement("--state"), ContainElement("--envoy-admin")))
			}
		}
		Expect(strings.Join(p.env("key"), "\n")).NotTo(ContainSubstring("MRGC_STATE"))
	})
})
