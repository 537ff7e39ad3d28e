module palisade.dev/e2e/kube/pause

go 1.26.0
