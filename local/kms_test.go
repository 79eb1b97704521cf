package local

import (
	"encoding/json"
	"os/exec"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/standin/softkms"
)

var _ = Describe("The plan's KMS", func() {
	It("has one key, whose policy the stand-in understands and names this build", func() {
		p := planFor()
		pcrs := attest.PCRs{}
		for i := range 3 {
			pcrs[i] = attest.ExtendedPCR([]byte{byte(i)})
		}
		policy, err := p.keyPolicy([]attest.Release{{Version: 1, Name: "local build", PCRs: pcrs}})
		Expect(err).NotTo(HaveOccurred())
		Expect(string(policy)).To(ContainSubstring(pcrs[0].String()))
		service, err := softkms.New(softkms.Config{Regions: []string{"us-east-1"}})
		Expect(err).NotTo(HaveOccurred())
		_, err = service.CreateKey(kmsKeyID, policy)
		Expect(err).NotTo(HaveOccurred())
	})

	It("is what every enclave asks by way of its own parent, which connects it to nothing else", func() {
		p := planFor()
		byName := children(p)
		for _, in := range p.instances() {
			enclave, parent := strings.Join(byName["enclave-"+in.id].args, " "), strings.Join(byName["parent-"+in.id].args, " ")
			Expect(enclave).To(ContainSubstring("-kms " + in.kmsRelay() + " -kms-region " + in.aws + " "))
			Expect(parent).To(ContainSubstring("-kms-relay " + in.kmsRelay() + " -kms-host " + p.kms.address))
		}
	})

	It("gives the tenant what the AWS SDK needs, in a file that a shell can read", func() {
		p := planFor()
		script := string(p.kmsEnv()) + `printf '%s\n' "$MRGC_KMS_KEY" "$AWS_ACCESS_KEY_ID" "$AWS_ENDPOINT_URL_KMS" "$AWS_CA_BUNDLE"`
		said, err := exec.Command("/bin/sh", "-c", script).Output()
		Expect(err).NotTo(HaveOccurred())
		Expect(strings.Fields(string(said))).To(Equal([]string{
			"arn:aws:kms:us-east-1:" + softkms.Account + ":key/mrk-dev", p.kms.tenant.Credentials.AccessKeyID, "https://" + p.kms.address, "/state/ca.pem",
		}))
	})

	It("logs each call as a line of JSON", func() {
		var out strings.Builder
		write := writeEvents(&out)
		write(softkms.Event{Action: "kms:Decrypt", Error: "AccessDeniedException"})
		var event softkms.Event
		Expect(json.Unmarshal([]byte(out.String()), &event)).To(Succeed())
		Expect(event).To(Equal(softkms.Event{Action: "kms:Decrypt", Error: "AccessDeniedException"}))
	})
})
