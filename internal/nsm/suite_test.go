package nsm_test

import (
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

func TestNSM(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "nsm")
}
