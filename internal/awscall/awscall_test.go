package awscall_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/awscall"
)

// Calls themselves are tested where they are made: internal/kms, internal/fleetkey.
func TestAWSCall(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "internal/awscall")
}

var _ = Describe("The signature", func() {
	DescribeTable("is the SDK's own, byte for byte",
		func(ctx SpecContext, service awscall.Service, name, operation, token, body string) {
			now := time.Date(2026, 11, 26, 23, 59, 59, 0, time.UTC)
			ours, err := http.NewRequest(http.MethodPost, "https://"+name+".eu-west-3.amazonaws.com/", bytes.NewReader([]byte(body)))
			Expect(err).NotTo(HaveOccurred())
			config := awscall.Config{Service: service, Region: "eu-west-3", Now: func() time.Time { return now }}
			awscall.Sign(config, ours, operation, []byte(body),
				awscall.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", SessionToken: token})

			theirs := ours.Clone(ctx)
			theirs.Header.Del("Authorization")
			theirs.ContentLength = 0 // which we do not sign: the body's hash says more
			sum := sha256.Sum256([]byte(body))
			Expect(v4.NewSigner().SignHTTP(ctx, aws.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", SessionToken: token},
				theirs, hex.EncodeToString(sum[:]), name, "eu-west-3", now)).To(Succeed())
			Expect(ours.Header).To(Equal(theirs.Header))
			Expect(ours.Header.Get("Authorization")).To(HavePrefix("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261126/eu-west-3/" + name + "/aws4_request, "))
			Expect(ours.Header.Get("X-Amz-Target")).To(HaveSuffix("." + operation))
		},
		Entry("without a session token", awscall.KMS, "kms", "Decrypt", "", `{"a":1}`),
		Entry("with one", awscall.KMS, "kms", "GenerateDataKey", "IQoJb3JpZ2luX2VjE//////////wEaCXVzLWVhc3QtMSJHMEUCIQ==", `{"a":1}`),
		Entry("of nothing", awscall.KMS, "kms", "Decrypt", "", ``),
		Entry("for another service", awscall.DynamoDB, "dynamodb", "PutItem", "", `{"a":1}`),
	)
})

var _ = Describe("Amazon's roots", func() {
	It("are the four that Amazon Trust Services publishes", func() {
		rest, err := os.ReadFile("amazon-roots.pem")
		Expect(err).NotTo(HaveOccurred())
		var found []string
		for block, more := pem.Decode(rest); block != nil; block, more = pem.Decode(more) {
			cert, err := x509.ParseCertificate(block.Bytes)
			Expect(err).NotTo(HaveOccurred())
			Expect(cert.IsCA).To(BeTrue())
			sum := sha256.Sum256(block.Bytes)
			found = append(found, cert.Subject.CommonName+" "+hex.EncodeToString(sum[:]))
		}
		// https://www.amazontrust.com/repository/
		Expect(found).To(ConsistOf(
			"Amazon Root CA 1 8ecde6884f3d87b1125ba31ac3fcb13d7016de7f57cc904fe1cb97c6ae98196e",
			"Amazon Root CA 2 1ba5b2aa8c65401a82960118f80bec4f62304d83cec4713a19c39c011ea46db4",
			"Amazon Root CA 3 18ce6cfe7bf14e60b2e347b8dfe868cb31d02ebb3ada271569f50343b46db3a4",
			"Amazon Root CA 4 e35d28419ed02025cfa69038cd623962458da5c695fbdea3c22b0bfb25897092",
		))
		Expect(awscall.AmazonRoots()).NotTo(BeNil())
	})
})
