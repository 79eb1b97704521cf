package parts_test

import (
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

func TestParts(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "parts")
}
