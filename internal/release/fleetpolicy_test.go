package release_test

import (
	"context"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/kms"
	"github.com/mrgc/mrgc/internal/release"
	"github.com/mrgc/mrgc/standin/softkms"
	"github.com/mrgc/mrgc/standin/softkms/softkmstest"
)

var _ = Describe("The policy of a fleet's key", func() {
	var w *softkmstest.World
	tied := map[string]string{"mrgc:fleet": "prod", "mrgc:region": "use1", "mrgc:epoch": "41020"}
	BeforeEach(func() {
		w = softkmstest.Start(GinkgoTB())
		w.AddPrincipal(adminPrincipal())
	})
	policyOf := func(releases ...attest.Release) release.FleetKeyPolicy {
		return release.FleetKeyPolicy{Releases: releases, Fleet: "prod", Admins: []string{admin}, Cluster: []string{w.Enclave.ARN}}
	}
	// attested does an operation as an enclave does it, with a document.
	attested := func(ctx context.Context, who softkms.Principal, action string, encryptionContext map[string]string) error {
		GinkgoHelper()
		c := fromEnclave(w, who)
		arn := softkms.ARN(softkmstest.Region, keyID)
		if action == "GenerateDataKey" {
			_, _, err := c.GenerateDataKey(ctx, arn, encryptionContext)
			return err
		}
		_, blob, err := w.DataKey(keyID, encryptionContext)
		Expect(err).NotTo(HaveOccurred())
		_, err = c.DecryptBy(ctx, arn, blob, encryptionContext)
		return err
	}

	It("lets enclaves of each trusted release make seeds and have them", func(ctx SpecContext) {
		putPolicy(w, policyOf(built(7), running(w), built(9)), nil)
		Expect(attested(ctx, w.Enclave, "GenerateDataKey", tied)).To(Succeed())
		Expect(attested(ctx, w.Enclave, "Decrypt", tied)).To(Succeed())
	})

	// Each refusal is for one rule: without it the same call passes.
	for _, action := range []string{"GenerateDataKey", "Decrypt"} {
		DescribeTable("refuses an enclave "+action,
			func(ctx SpecContext, policy func() release.FleetKeyPolicy, without func(*document), encryptionContext map[string]string) {
				putPolicy(w, policy(), nil)
				Expect(attested(ctx, w.Enclave, action, encryptionContext)).To(MatchError(kms.ErrDenied))
				putPolicy(w, policy(), without)
				Expect(attested(ctx, w.Enclave, action, encryptionContext)).To(Succeed())
			},
			Entry("of another image", func() release.FleetKeyPolicy { return policyOf(built(7)) }, func(d *document) {
				delete(d.statement("Release"), "Condition")
				d.drop("NothingButTrustedReleases")
			}, tied),
			Entry("of another image, though another statement allows it", func() release.FleetKeyPolicy { return policyOf(built(7)) }, func(d *document) {
				delete(d.statement("Release"), "Condition")
				condition(d.statement("NothingButTrustedReleases"), "StringNotEqualsIgnoreCase")["kms:RecipientAttestation:ImageSha384"] = w.PCRs[0].String()
			}, tied),
			Entry("in another role, hence account", func() release.FleetKeyPolicy {
				r := running(w)
				r.PCRs[3] = attest.ExtendedPCR([]byte("another"))
				return policyOf(r)
			}, func(d *document) {
				delete(condition(d.statement("Release"), "StringEqualsIgnoreCase"), "kms:RecipientAttestation:PCR3")
			}, tied),
			Entry("for another fleet", func() release.FleetKeyPolicy { return policyOf(running(w)) }, func(d *document) {
				delete(d.statement("Release")["Condition"].(map[string]any), "StringEquals")
			}, map[string]string{"mrgc:fleet": "test", "mrgc:region": "use1", "mrgc:epoch": "41020"}),
			Entry("on behalf of another role", func() release.FleetKeyPolicy {
				p := policyOf(running(w))
				p.Cluster = []string{"arn:aws:iam::444455556666:role/other"}
				return p
			}, func(d *document) { d.statement("Release")["Principal"] = map[string]any{"AWS": w.Enclave.ARN} }, tied),
		)
	}

	broad := func(d *document) {
		d.Statement = append(d.Statement, map[string]any{"Sid": "Broad", "Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*"})
	}
	DescribeTable("lets nobody know a seed, by", func(ctx SpecContext, who func() softkms.Principal, action, rule string) {
		denied := MatchError(ContainSubstring("AccessDeniedException"))
		putPolicy(w, policyOf(running(w)), nil)
		Expect(callAs(ctx, w, who(), action, tied)).To(denied)
		putPolicy(w, policyOf(running(w)), broad)
		Expect(callAs(ctx, w, who(), action, tied)).To(denied, "though somebody has come to allow everything")
		putPolicy(w, policyOf(running(w)), func(d *document) {
			broad(d)
			d.drop(rule)
		})
		Expect(callAs(ctx, w, who(), action, tied)).To(Succeed())
	},
		Entry("planting one that was encrypted by the administrator", func() softkms.Principal { return adminPrincipal() }, "Encrypt", "NoWayAround"),
		Entry("planting one that was encrypted on behalf of the cluster's role", func() softkms.Principal { return w.Enclave }, "Encrypt", "NoWayAround"),
		Entry("re-encrypting", func() softkms.Principal { return adminPrincipal() }, "ReEncrypt", "NoWayAround"),
		Entry("having one made without a document", func() softkms.Principal { return w.Enclave }, "GenerateDataKey", "NothingButTrustedReleases"),
		Entry("having one made, the administrator", func() softkms.Principal { return adminPrincipal() }, "GenerateDataKey", "NothingButTrustedReleases"),
		Entry("decrypting without a document", func() softkms.Principal { return w.Enclave }, "Decrypt", "NothingButTrustedReleases"),
		Entry("decrypting, a tenant", func() softkms.Principal { return w.Tenant }, "Decrypt", "NothingButTrustedReleases"),
	)

	DescribeTable("is not made", func(reason string, change func(*release.FleetKeyPolicy)) {
		p := policyOf(built(7))
		_, err := p.JSON()
		Expect(err).NotTo(HaveOccurred())
		change(&p)
		_, err = p.JSON()
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("without a fleet", "no fleet", func(p *release.FleetKeyPolicy) { p.Fleet = "" }),
		Entry("without releases", "no release", func(p *release.FleetKeyPolicy) { p.Releases = nil }),
		Entry("without an administrator", "no administrator", func(p *release.FleetKeyPolicy) { p.Admins = nil }),
		Entry("for everybody", `cluster role "*"`, func(p *release.FleetKeyPolicy) { p.Cluster = []string{"*"} }),
		Entry("for a register that KMS does not compare", "PCR16", func(p *release.FleetKeyPolicy) { p.Releases[0].PCRs[16] = attest.ExtendedPCR(nil) }),
	)
})
