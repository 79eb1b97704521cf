package extproc_test

import (
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

func TestExtproc(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "extproc")
}
