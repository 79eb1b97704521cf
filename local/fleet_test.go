package local

import (
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/standin/softkms"
)

var _ = Describe("The plan's fleet keys", func() {
	It("are none without a DynamoDB to keep them in", func() {
		for _, child := range children(planFor()) {
			Expect(strings.Join(child.args, " ")).NotTo(MatchRegexp(`-fleet|-dynamodb`))
		}
	})

	It("are every enclave's, by its own region's KMS key and table, through its own parent", func() {
		p := planFor(func(o *Options) { o.FleetDynamoDB = "http://127.0.0.1:8000" })
		byName := children(p)
		for _, in := range p.instances() {
			enclave, parent := strings.Join(byName["enclave-"+in.id].args, " "), strings.Join(byName["parent-"+in.id].args, " ")
			Expect(enclave).To(ContainSubstring("-fleet " + p.fleet.name + " -fleet-kms-key arn:aws:kms:" + in.aws + ":111122223333:key/mrk-dev-fleet " +
				"-fleet-table arn:aws:dynamodb:" + in.aws + ":444455556666:table/fleet_keys -dynamodb " + in.dynamoDBRelay()))
			Expect(parent).To(ContainSubstring("-dynamodb-relay " + in.dynamoDBRelay() + " -dynamodb-host " + p.fleet.address))
		}
		policy, err := p.fleetPolicy([]attest.Release{{Version: 1, Name: "local build", PCRs: attest.PCRs{0: attest.ExtendedPCR(nil)}}})
		Expect(err).NotTo(HaveOccurred())
		service, err := softkms.New(softkms.Config{Regions: []string{"us-east-1"}})
		Expect(err).NotTo(HaveOccurred())
		_, err = service.CreateKey(fleetKMSKeyID, policy)
		Expect(err).NotTo(HaveOccurred())
	})

	DescribeTable("are not kept", func(url string) {
		o := Options{FleetDynamoDB: url}
		Expect(o.checkFleet()).To(MatchError(ContainSubstring("on this machine")))
	},
		Entry("elsewhere", "http://192.0.2.1:8000"), Entry("at AWS", "https://dynamodb.us-east-1.amazonaws.com"), Entry("nowhere", "x"), Entry("at a path", "http://127.0.0.1:8000/x"),
	)
})
